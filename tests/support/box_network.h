#ifndef CARAVAN_TESTS_SUPPORT_BOX_NETWORK_H_
#define CARAVAN_TESTS_SUPPORT_BOX_NETWORK_H_

// Boxes at one switch, each a network namespace of this machine: what runs in one reaches the
// others by its cable only, which can be pulled out and made slow.
//
//   namespace hub:  bridge -- port0   port1   port2 ...
//                               |       |       |
//   namespace of each box:    eth0    eth0    eth0     10.77.0.1, .2, .3, ...

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace caravan {

/// Used by one thread. The destructor removes the namespaces; processes in them are not its matter.
class BoxNetwork {
 public:
  /// Errors: FailedPrecondition - this process may not make namespaces, or iproute2 or the kernel
  ///         lacks what it takes (with the words of `ip`).
  static absl::StatusOr<std::unique_ptr<BoxNetwork>> Create(int num_boxes);
  ~BoxNetwork();
  BoxNetwork(const BoxNetwork&) = delete;
  BoxNetwork& operator=(const BoxNetwork&) = delete;

  std::string host(int box) const;
  /// What to write before a command to have it run there. The process stays the one that was
  /// started.
  std::vector<std::string> Enter(int box) const;

  // Each returns once the kernel has done it; a failure fails the test.

  /// What is sent from now on, either way, is lost.
  void Unplug(int box);
  void Plug(int box);
  /// Either way no more than that.
  void Shape(int box, int64_t kbit_per_s);
  void Unshape(int box);
  /// Its connections are gone without a word: neither end hears of it, as when the power is cut.
  /// REQUIRES: its processes have ended while it was unplugged. It is plugged in again.
  void Replace(int box);

 private:
  explicit BoxNetwork(int num_boxes);
  absl::Status Build();
  absl::Status Add(int box);
  std::string Name(int box) const;

  const int num_boxes_;
  const std::string prefix_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_BOX_NETWORK_H_
