#ifndef CARAVAN_WORKER_INPUT_STATISTICS_H_
#define CARAVAN_WORKER_INPUT_STATISTICS_H_

// How large each column of the inputs of a stage's matrices is, over all the rows that it saw.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/observing_backend.h"
#include "model/model_config.h"
#include "model/pack/importance.h"
#include "model/stage_spec.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Used by one thread at a time.
class InputStatistics : public InputObserver {
 public:
  void Observe(const Matrix& w, const float* rows, int64_t num_rows) override;

  /// The mean squares for every matrix of the stage that was observed; those that no row met, such
  /// as experts that no token chose, have count 0.
  Importance Result(const ModelConfig& config, const StageSpec& stage,
                    const StageWeights& weights) const;

 private:
  struct Sums {
    std::vector<double> squares;  // [cols]
    int64_t count = 0;
  };
  absl::flat_hash_map<const std::byte*, Sums> sums_;  // by Matrix::data
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_INPUT_STATISTICS_H_
