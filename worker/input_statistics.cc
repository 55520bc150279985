#include "worker/input_statistics.h"

#include <string>
#include <utility>

#include "worker/named_matrices.h"

namespace caravan {

void InputStatistics::Observe(const Matrix& w, const float* rows, int64_t num_rows) {
  Sums& sums = sums_[w.data];
  sums.squares.resize(static_cast<size_t>(w.cols));
  sums.count += num_rows;
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t col = 0; col < w.cols; ++col) {
      const double value = static_cast<double>(rows[row * w.cols + col]);
      sums.squares[static_cast<size_t>(col)] += value * value;
    }
  }
}

Importance InputStatistics::Result(const ModelConfig& config, const StageSpec& stage,
                                   const StageWeights& weights) const {
  Importance importance;
  for (const auto& [name, matrix] : NamedMatrices(config, stage, weights)) {
    Importance::Columns columns;
    columns.mean_square.resize(static_cast<size_t>(matrix.cols));
    if (const auto it = sums_.find(matrix.data); it != sums_.end()) {
      columns.count = it->second.count;
      for (size_t col = 0; col < columns.mean_square.size(); ++col) {
        columns.mean_square[col] =
            static_cast<float>(it->second.squares[col] / static_cast<double>(columns.count));
      }
    }
    importance.Set(name, std::move(columns));
  }
  return importance;
}

}  // namespace caravan
