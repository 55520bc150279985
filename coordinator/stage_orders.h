#ifndef CARAVAN_COORDINATOR_STAGE_ORDERS_H_
#define CARAVAN_COORDINATOR_STAGE_ORDERS_H_

// A plan as its workers are told of it: what each is to load, who its neighbours are, and where it
// finds what it lacks.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "caravan/v1/cluster.pb.h"
#include "cluster/membership.h"
#include "cluster/pipeline_plan.h"
#include "coordinator/hop_rules.h"
#include "coordinator/kv_archives.h"
#include "coordinator/kv_replica_rules.h"
#include "model/layer_cost.h"

namespace caravan {

class StageOrders {
 public:
  /// Of the coordinator, whatever the plan.
  struct Options {
    v1::ModelReference model;
    ModelCost cost;
    int64_t context_tokens = 0;   // longest sequence
    int64_t max_step_tokens = 0;  // rows that one step may carry
    uint64_t incarnation = 0;     // as is:
    std::string identity;         // empty: it has no certificate
  };

  /// Borrows all but the options.
  StageOrders(Options options, const Membership* members, const HopRules* hops,
              const KvReplicaRules* replicas);

  /// For each stage of the plan, whose workers are members. `usable`: the members that plans may
  /// use; only they are sent others' KV blocks.
  std::vector<v1::LoadStage> Make(const PipelinePlan& plan,
                                  const std::vector<Member>& usable) const;

  /// While the plan serves: what its workers are to be told now of who keeps whose KV blocks.
  /// `told` is what they were told last, by stage, and will be what they are told now. Changes are
  /// said in the log.
  std::vector<std::pair<WorkerId, v1::SetKvReplica>> RenewKvReplicas(
      const PipelinePlan& plan, const std::vector<Member>& usable,
      std::vector<v1::KvArchives>& told) const;

  /// Says in the log what `orders`, which were made of the plan, say, and what is risky in it.
  void Log(const PipelinePlan& plan, const std::vector<v1::LoadStage>& orders) const;

 private:
  v1::LoadStage MakeOne(const PipelinePlan& plan, size_t i) const;
  KvArchiveMembers KvArchiveMembersOf(const PipelinePlan& plan,
                                      const std::vector<Member>& usable) const;
  /// The least memory that holds the stage with all of its experts.
  int64_t ResidentBudget(const StagePlan& stage) const;

  const Options options_;
  const Membership* const members_;
  const HopRules* const hops_;
  const KvReplicaRules* const replicas_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_STAGE_ORDERS_H_
