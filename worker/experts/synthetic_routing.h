#ifndef CARAVAN_WORKER_EXPERTS_SYNTHETIC_ROUTING_H_
#define CARAVAN_WORKER_EXPERTS_SYNTHETIC_ROUTING_H_

// Made-up choices of experts, for benchmarks: the weights of a made-up model route nothing like a
// trained one's.
//
// In each layer expert of rank r (from 1, by a permutation of the layer's own) is chosen with a
// probability in proportion to r^-zipf; with probability `sticky` a choice is instead one of those
// that the layer made for the sequence's last row. What is chosen for a row is not chosen twice. A
// new topic makes half of a layer's experts change ranks with each other. Weights are uniform in
// [0.5, 1.5), made to sum up to 1: they tell nothing about what comes.

#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace caravan {

/// The same for the same options on every machine. Used by one thread at a time.
class SyntheticRouting {
 public:
  struct Options {
    double zipf = 0.8;    // 0: all alike
    double sticky = 0.3;  // in [0, 1]
    int num_layers = 58;
    int n_routed_experts = 256;
    int num_experts_per_tok = 8;
    int num_sequences = 1;  // to which a layer's rows belong in turn
    uint64_t seed = 1;
  };
  struct Row {
    // Both [num_experts_per_tok], valid until the next call.
    absl::Span<const int32_t> expert_ids;  // ascending
    absl::Span<const float> weights;
  };

  /// Errors: InvalidArgument - what is out of its range.
  static absl::Status Check(const Options& options);
  /// REQUIRES: Check(options) is OK.
  explicit SyntheticRouting(const Options& options);

  /// What the layer chooses for its next row. REQUIRES: 0 <= layer < num_layers.
  Row Next(int layer);
  void BeginTopic();

  const Options& options() const { return options_; }

 private:
  struct Layer {
    std::vector<int32_t> expert_of_rank;
    std::vector<std::vector<int32_t>> last;  // a sequence's last row's; empty: none
    size_t sequence = 0;                     // whose row is next
  };

  double Uniform();                                        // in [0, 1)
  int Below(int bound);                                    // in [0, bound)
  int32_t DrawRepeated(const std::vector<int32_t>& last);  // -1: all of the last row's are chosen
  int32_t DrawByRank(const Layer& layer);

  const Options options_;
  std::mt19937_64 generator_;
  std::vector<double> probability_of_rank_;
  std::vector<Layer> layers_;
  // Of the row that is drawn.
  std::vector<char> is_chosen_;  // by expert
  std::vector<int32_t> chosen_;
  std::vector<float> weights_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_SYNTHETIC_ROUTING_H_
