#ifndef CARAVAN_TESTS_COORDINATOR_TOY_MODEL_H_
#define CARAVAN_TESTS_COORDINATOR_TOY_MODEL_H_

// A model for tests of the coordinator: every output is a hash of the tokens before it.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/job.h"

namespace caravan {

struct ToyModel {
  int64_t vocab_size = 97;

  static uint64_t Hash(absl::Span<const int32_t> prefix, uint64_t seed) {
    uint64_t hash = 0x9e3779b97f4a7c15u + seed;
    for (const int32_t token_id : prefix) {
      hash = (hash ^ static_cast<uint64_t>(token_id)) * 0xff51afd7ed558ccdu;
      hash ^= hash >> 32;
    }
    return hash;
  }

  ScoredToken Next(absl::Span<const int32_t> prefix, const v1::SamplingParams& sampling) const {
    const uint64_t hash = Hash(prefix, sampling.temperature() > 0 ? sampling.seed() : 0);
    return {static_cast<int32_t>(hash % static_cast<uint64_t>(vocab_size)),
            -static_cast<float>(hash % 1024) / 64,
            {}};
  }

  /// The log-probability of `token_id` after `prefix`.
  float Score(absl::Span<const int32_t> prefix, int32_t token_id) const {
    return -static_cast<float>(Hash(prefix, static_cast<uint64_t>(token_id)) % 1024) / 64;
  }

  /// [vocab_size], of the prefix's last position.
  std::vector<float> Logits(absl::Span<const int32_t> prefix) const {
    std::vector<float> logits(static_cast<size_t>(vocab_size));
    for (size_t i = 0; i < logits.size(); ++i) {
      logits[i] = static_cast<float>(Hash(prefix, i) % 4096) / 16;
    }
    return logits;
  }

  /// What a job must yield, worked out one token after the other.
  std::vector<int32_t> Reply(const JobSpec& spec) const {
    std::vector<int32_t> token_ids = spec.prompt;
    std::vector<int32_t> reply;
    while (static_cast<int64_t>(reply.size()) < spec.max_new_tokens) {
      reply.push_back(Next(token_ids, spec.sampling).token_id);
      token_ids.push_back(reply.back());
      const auto& stops = spec.stop_token_ids;
      if (std::find(stops.begin(), stops.end(), reply.back()) != stops.end()) break;
    }
    return reply;
  }

  std::vector<float> PromptLogits(const JobSpec& spec) const {
    std::vector<float> all;
    for (size_t count = 1; count <= spec.prompt.size(); ++count) {
      const std::vector<float> row = Logits(absl::MakeConstSpan(spec.prompt).first(count));
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }

  std::vector<ScoredToken> PromptScores(const JobSpec& spec) const {
    std::vector<ScoredToken> scores;
    for (size_t i = 1; i < spec.prompt.size(); ++i) {
      const int32_t token_id = spec.prompt[i];
      scores.push_back({token_id, Score(absl::MakeConstSpan(spec.prompt).first(i), token_id), {}});
    }
    return scores;
  }
};

/// A prompt of `length` tokens that no other `salt` gives.
inline std::vector<int32_t> ToyPrompt(int length, int salt = 0) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < length; ++i) prompt.push_back((i * 7 + salt * 13 + 1) % 97);
  return prompt;
}

inline JobSpec ToyJob(int prompt_tokens, int64_t max_new_tokens, int salt = 0) {
  JobSpec spec;
  spec.prompt = ToyPrompt(prompt_tokens, salt);
  spec.max_new_tokens = max_new_tokens;
  return spec;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_TOY_MODEL_H_
