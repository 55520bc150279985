#ifndef CARAVAN_CLUSTER_PROTOCOL_VERSION_H_
#define CARAVAN_CLUSTER_PROTOCOL_VERSION_H_

#include <cstdint>

namespace caravan {

/// Of what coordinators and workers say to each other. Grows with every change after which an older
/// process would misunderstand a newer one; the two then refuse each other by name (docs/wire.md).
inline constexpr uint32_t kProtocolVersion = 3;

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PROTOCOL_VERSION_H_
