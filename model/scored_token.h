#ifndef CARAVAN_MODEL_SCORED_TOKEN_H_
#define CARAVAN_MODEL_SCORED_TOKEN_H_

// A token and how likely the model found it.

#include <cstdint>
#include <vector>

#include "caravan/v1/pipeline.pb.h"

namespace caravan {

/// Log-probabilities are natural logarithms, under the softmax of the logits as the model gave
/// them.
struct ScoredToken {
  struct Alternative {
    int32_t token_id = 0;
    float log_probability = 0;
    friend bool operator==(const Alternative&, const Alternative&) = default;
  };
  int32_t token_id = 0;
  float log_probability = 0;
  std::vector<Alternative> alternatives;  // likeliest first
  friend bool operator==(const ScoredToken&, const ScoredToken&) = default;
};

v1::TokenScore ToProto(const ScoredToken& token);
ScoredToken FromProto(const v1::TokenScore& token);

}  // namespace caravan

#endif  // CARAVAN_MODEL_SCORED_TOKEN_H_
