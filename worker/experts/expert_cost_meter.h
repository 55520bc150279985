#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_COST_METER_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_COST_METER_H_

// Measures ExpertCosts on this box, with the experts and the memory of a stage that has not begun
// to serve, under the conditions of a visit: over so many experts that no cache of the CPU holds
// them, of rows as uneven as rows choose, CPU and copies alone and beside each other.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/expert_batches.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "worker/experts/card_slots.h"
#include "worker/experts/expert_costs.h"
#include "worker/experts/expert_store.h"

namespace caravan {

class ExpertCostMeter {
 public:
  /// What a visit has, of at most max_rows rows. What lies in the slots is overwritten.
  struct Parts {
    ExpertStore& store;
    CardSlots& slots;  // at least 3
    Backend& card;
    Backend& cpu;
    const Array& card_ids;       // i32 [2, max_rows, k]
    const Array& card_sum;       // f32 [max_rows, hidden_size]
    absl::Span<float> host_sum;  // [max_rows, hidden_size]
    int64_t max_rows = 0;
  };

  /// The experts that it measures with: `count` sets of k, where a token chooses k.
  struct Sets {
    int64_t k = 0;
    int64_t count = 0;
  };
  /// As many as lie in memory once they were read, and no cache of a CPU holds.
  static Sets SetsOf(const ModelConfig& config, ExpertStore& store, const CardSlots& slots);

  /// All are borrowed.
  ExpertCostMeter(const ModelConfig& config, const Parts& parts);

  /// Takes two to four seconds. The store's experts are not used in the sense of its cache.
  /// Errors: as ExpertStore::Read, of the backends, and Memory::Allocate.
  absl::StatusOr<ExpertCosts> Measure();

 private:
  /// Rows that choose k experts.
  struct Choice {
    int64_t rows = 0;
    std::vector<int32_t> ids;    // [rows, k], below k
    std::vector<float> weights;  // [rows, k]
  };

  /// Of which each expert has `rows` rows on average, one a half more than that and one a half.
  Choice Uneven(int64_t rows) const;
  /// Has some sets of k experts in the host's memory, and one on the card.
  absl::Status TakeExperts();
  absl::Status MeasureCopies();
  absl::Status MeasurePoint(const Choice& choice, ExpertCosts::Point& point);
  /// On the CPU, and of copies beside it.
  absl::Status MeasureHost(const Choice& choice, ExpertCosts::Point& point);
  absl::StatusOr<double> MeasureCard(const Choice& choice);
  absl::Status MeasureVisit();
  absl::Status MeasureSum();

  /// set: of any number.
  absl::Status RunOnCpu(size_t set, const Choice& choice);
  absl::Status RunOnCard(std::vector<LoadedExpert> experts, int64_t rows, const int32_t* ids);
  absl::Status SumToCard(int64_t rows);
  absl::Status WaitForCard();
  /// i: of any number.
  const FfnWeights& HostExpert(size_t i) const { return host_[i % host_.size()].weights; }

  const ModelConfig& config_;
  const Parts parts_;
  const Sets sets_;
  const int64_t k_;                    // sets_.k
  std::vector<LoadedExpert> host_;     // [sets * k]: ids below k
  std::vector<LoadedExpert> on_card_;  // [k]
  std::vector<float> host_x_;          // [max_rows, hidden_size]
  Array x_;                            // f32 [max_rows, hidden_size]
  Array weights_;                      // f32 [max_rows, k]
  ExpertCosts costs_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_COST_METER_H_
