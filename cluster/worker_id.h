#ifndef CARAVAN_CLUSTER_WORKER_ID_H_
#define CARAVAN_CLUSTER_WORKER_ID_H_

#include <cstdint>

namespace caravan {

/// A worker's number within one coordinator's life: counts from 1 in order of joining, and is never
/// given twice. A type of its own, lest it be taken for an incarnation, a stage or a rank.
enum class WorkerId : uint32_t {};

/// For messages and the wire. Back: WorkerId{number}.
constexpr uint32_t Number(WorkerId id) { return static_cast<uint32_t>(id); }

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_WORKER_ID_H_
