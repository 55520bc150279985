#ifndef CARAVAN_CLUSTER_PLAN_AIM_H_
#define CARAVAN_CLUSTER_PLAN_AIM_H_

namespace caravan {

/// What layers are split for.
enum class PlanAim {
  kBulk,         // most tokens/s of all jobs together
  kInteractive,  // least time for a token of one job that decodes alone
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PLAN_AIM_H_
