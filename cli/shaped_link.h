#ifndef CARAVAN_CLI_SHAPED_LINK_H_
#define CARAVAN_CLI_SHAPED_LINK_H_

// A network link made of software, for benchmarks on one machine: who connects here talks to
// somebody else as if over a cable of some rate and latency. It needs no rights, unlike the
// kernel's traffic control, and costs two copies and two wake-ups of a thread more than a cable.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace caravan {

struct LinkShape {
  double bytes_per_second = 0;  // each way, of all connections together
  absl::Duration latency;       // each way, besides
};

/// Carries what comes until it is destroyed. A thread of its own does it. Thread-safe.
///
///            accept            connect
///   client <--------> a port <---------> target
///
/// Each way takes bytes in as fast as the rate allows and holds them for the latency; what it has
/// not taken in waits in the sender's socket, as before a slow cable.
class ShapedLink {
 public:
  virtual ~ShapedLink() = default;

  /// HOST:PORT where it listens, on 127.0.0.1.
  virtual const std::string& address() const = 0;

  /// From now on connections lead to `target`, HOST:PORT, a numeric address. Before, they wait.
  virtual void ConnectTo(const std::string& target) = 0;

  /// Errors: Internal - no port. REQUIRES: bytes_per_second > 0.
  static absl::StatusOr<std::unique_ptr<ShapedLink>> Open(const LinkShape& shape);
};

}  // namespace caravan

#endif  // CARAVAN_CLI_SHAPED_LINK_H_
