#ifndef CARAVAN_CLUSTER_INCARNATION_H_
#define CARAVAN_CLUSTER_INCARNATION_H_

#include <cstdint>

namespace caravan {

/// A random number that tells this life of a process from every other; never 0. Thread-safe.
uint64_t NewIncarnation();

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_INCARNATION_H_
