#ifndef CARAVAN_BASE_CPU_MODEL_H_
#define CARAVAN_BASE_CPU_MODEL_H_

#include <string>

namespace caravan {

/// This machine's CPU by its maker's name, "Intel(R) Xeon(R) CPU E3-1240 v5 @ 3.50GHz", as the
/// kernel tells it (/proc/cpuinfo). Empty: it does not.
std::string CpuModel();

}  // namespace caravan

#endif  // CARAVAN_BASE_CPU_MODEL_H_
