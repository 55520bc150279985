#ifndef CARAVAN_WORKER_COMPUTE_DEVICE_H_
#define CARAVAN_WORKER_COMPUTE_DEVICE_H_

// What a worker computes with: this machine's CPU, or one of its cards.
//
// Thread-safe; the backends that it makes are not.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/model_config.h"
#include "worker/card_link.h"

namespace caravan {

/// A card's memory, and the way to it. Rates in bytes a second.
struct CardMemory {
  int64_t total_bytes = 0;
  double read = 0;       // by a plain kernel
  double to_card = 0;    // from page-locked memory of the host, in pieces as large as experts
  double from_card = 0;  // likewise
};

class ComputeDevice {
 public:
  virtual ~ComputeDevice() = default;

  /// For people: "cpu", "cuda:0 (NVIDIA GeForce RTX 3060)".
  virtual std::string Name() const = 0;
  /// Of its own memory, what a worker may take; 0: it computes in the host's.
  virtual int64_t memory_budget_bytes() const = 0;
  bool is_card() const { return memory_budget_bytes() > 0; }

  /// A backend for steps of at most max_rows rows of this model.
  /// Errors: ResourceExhausted - no memory for its scratch (says how much it takes);
  ///         InvalidArgument - a model that its kernels have no room for (says in what).
  virtual absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const ModelConfig& config,
                                                               int64_t max_rows) const = 0;
  /// The CPU's, for what a card leaves to it. Errors: as MakeCpuBackend.
  virtual absl::StatusOr<std::unique_ptr<Backend>> MakeCpu() const = 0;
  /// Whether it can compute at all. Errors: Internal - a card that failed for good, so that no more
  /// can be had of it in this process.
  virtual absl::Status Check() const { return absl::OkStatus(); }
  /// Measures it; takes half a second, and for that time most of what is free there.
  /// Errors: Unimplemented - it is no card; ResourceExhausted - too little is free; Internal - the
  ///         card failed.
  virtual absl::StatusOr<CardMemory> MeasureMemory() const {
    return absl::UnimplementedError(absl::StrCat(Name(), " is no card (--device)"));
  }
  /// What carries activations from this card to others.
  /// Errors: Unimplemented - it is no card; as OpenNcclTransport.
  virtual absl::StatusOr<std::unique_ptr<CardTransport>> OpenCardTransport() const {
    return absl::UnimplementedError(absl::StrCat(Name(), " is no card (--device)"));
  }
};

struct DeviceOptions {
  std::string name = "cpu";  // or cuda:N
  int64_t memory_bytes = 0;  // of a card, that may be taken; 0: what is free but for a reserve
  int sharers = 1;           // of that; what MakeBackend's backends may take each is a part
  CpuOptions cpu;            // of the CPU's backends
};

/// What a card keeps free unless it is told otherwise, for the driver and for who else draws on it.
inline constexpr int64_t kCardReserveBytes = int64_t{512} << 20;

/// Errors: InvalidArgument - no such device, or memory_bytes that it has not free (says how much
///         is);
///         Unavailable - no driver, no card, or one that is too old; Unimplemented - this program
///         was built without CUDA; as MakeCpuBackend.
absl::StatusOr<std::unique_ptr<ComputeDevice>> OpenComputeDevice(const DeviceOptions& options);

/// The same of card `ordinal`.
absl::StatusOr<std::unique_ptr<ComputeDevice>> OpenCard(int ordinal, const DeviceOptions& options);

}  // namespace caravan

#endif  // CARAVAN_WORKER_COMPUTE_DEVICE_H_
