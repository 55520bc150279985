#ifndef CARAVAN_WORKER_EXPERTS_GUESS_LIST_H_
#define CARAVAN_WORKER_EXPERTS_GUESS_LIST_H_

// Which experts of a layer are likely to be needed soon, in the order in which they are worth
// reading. Used by one thread at a time. Allocates nothing once made.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "worker/experts/expert_key.h"

namespace caravan {

class GuessList {
 public:
  explicit GuessList(int experts_per_layer);

  /// No layer.
  void Clear();
  /// All experts, as they lie in the file.
  void SetAll(int layer);
  /// Those that a layer's rows are likely to choose: first those that most of them do, of these
  /// those of the highest weight. REQUIRES: expert_ids and weights are of one size, and each id is
  /// an expert's.
  void SetLikely(int layer, absl::Span<const int32_t> expert_ids, absl::Span<const float> weights);

  /// -1: none.
  int layer() const { return layer_; }
  /// The next one; nullopt: all were given, or there is no layer.
  std::optional<ExpertKey> Next();

 private:
  struct Likely {
    int32_t expert = 0;
    int64_t rows = 0;
    float weight = 0;  // summed over them
  };

  const int experts_per_layer_;
  int layer_ = -1;
  std::vector<Likely> tally_;   // by expert; scratch of SetLikely
  std::vector<int32_t> order_;  // of experts
  size_t next_ = 0;             // of order_
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_GUESS_LIST_H_
