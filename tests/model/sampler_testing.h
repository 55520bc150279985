#ifndef CARAVAN_TESTS_MODEL_SAMPLER_TESTING_H_
#define CARAVAN_TESTS_MODEL_SAMPLER_TESTING_H_

// What the tests of the sampler share: requests, and logits that are no numbers.

#include <cstdint>
#include <limits>
#include <vector>

#include "caravan/v1/pipeline.pb.h"

namespace caravan {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline v1::SamplingParams Params(float temperature, uint32_t top_k = 0, float top_p = 0,
                                 uint64_t seed = 0) {
  v1::SamplingParams params;
  params.set_temperature(temperature);
  params.set_top_k(top_k);
  params.set_top_p(top_p);
  params.set_seed(seed);
  return params;
}

inline v1::SamplingHistory History(const std::vector<uint32_t>& prompt,
                                   const std::vector<uint32_t>& reply) {
  v1::SamplingHistory history;
  history.mutable_prompt_token_ids()->Add(prompt.begin(), prompt.end());
  history.mutable_reply_token_ids()->Add(reply.begin(), reply.end());
  return history;
}

inline void AddBias(v1::SamplingParams& params, uint32_t token_id, float value) {
  v1::LogitBias& bias = *params.add_logit_biases();
  bias.set_token_id(token_id);
  bias.set_bias(value);
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_MODEL_SAMPLER_TESTING_H_
