#ifndef CARAVAN_CLI_COMPUTE_METER_H_
#define CARAVAN_CLI_COMPUTE_METER_H_

// How many multiply-adds a second a backend does, in the terms of which predictions are made
// (cluster/box.h): measured with its own kernels, at R1's shapes.

#include <cstdint>
#include <functional>
#include <stop_token>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "kernels/backend.h"
#include "model/model_config.h"

namespace caravan {

/// R1's sizes, as far as the measurements want them of a backend.
ModelConfig MeasuredConfig();

/// Used by one thread. Each measurement lasts for about `duration`, and is the median of runs of
/// at least 10 ms each. What is told from the difference of two takes twice as long, and they take
/// turns, so that a machine that becomes slower or faster meanwhile does so for both.
class ComputeMeter {
 public:
  /// Both are borrowed. The backend is one for MeasuredConfig.
  ComputeMeter(Backend& backend, absl::Duration duration, std::stop_token stop = {},
               const Clock& clock = SteadyClock())
      : backend_(backend), duration_(duration), stop_(std::move(stop)), clock_(clock) {}

  /// Of an expert's matrices in Q4_K, each by `rows` rows. Takes 256 MiB, so that no cache holds
  /// them. Errors: as Memory::Allocate, and of the backend; Cancelled - stopped.
  absl::StatusOr<double> MultiplyAdds(int64_t rows);

  /// A second, of the same: a product takes bytes / read_bytes + multiply-adds / multiply_adds.
  struct Products {
    double read_bytes = 0;
    double multiply_adds = 0;
  };
  /// From what `rows` rows take and what one takes. Errors: as MultiplyAdds. REQUIRES: rows > 1.
  absl::StatusOr<Products> MeasureProducts(int64_t rows);

  /// Of the last rows of a prompt by a KV cache of F16, and of what brings them into the latent
  /// space and out of it. Errors: the same.
  absl::StatusOr<double> AttentionMultiplyAdds();

 private:
  struct Product {
    double seconds = 0;
    double bytes = 0;
    double multiply_adds = 0;
  };
  /// Of each of `rows`.
  absl::StatusOr<std::vector<Product>> TimeProducts(absl::Span<const int64_t> rows);
  /// Seconds of each call, which take turns: it queues the work, whose results begin at `out`.
  absl::StatusOr<std::vector<double>> SecondsOf(const float* out,
                                                absl::Span<const std::function<void()>> calls);
  absl::Status Wait(const float* out);
  /// Bytes that are values of any format, none of them subnormal, infinite or not a number.
  absl::StatusOr<Array> Fill(int64_t bytes);
  absl::StatusOr<Array> Activations(int64_t count);

  Backend& backend_;
  const absl::Duration duration_;
  const std::stop_token stop_;
  const Clock& clock_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_COMPUTE_METER_H_
