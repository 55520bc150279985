#ifndef CARAVAN_COORDINATOR_JOB_H_
#define CARAVAN_COORDINATOR_JOB_H_

// What a job asks for and what its reader gets, in token ids: text is the services' business.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "caravan/v1/jobs.pb.h"
#include "caravan/v1/pipeline.pb.h"
#include "model/scored_token.h"

namespace caravan {

/// Who goes first when not all fit. Bulk jobs age, so that they never starve.
enum class JobPriority { kInteractive, kBulk };

/// A job generates (max_new_tokens), scores its prompt (score_prompt), or both; or it yields its
/// prompt's logits (prompt_logits), and nothing else.
struct JobSpec {
  uint64_t id = 0;  // PipelineDriver::NewJobId's, and no other job's; 0: the driver draws one
  std::vector<int32_t> prompt;
  // Of the reply, what an earlier run of the job has generated already: this one goes on behind it.
  std::vector<int32_t> reply;
  int64_t max_new_tokens = 0;  // longest reply, with `reply`; cut to what the context leaves
  v1::SamplingParams sampling;
  std::vector<int32_t> stop_token_ids;  // the stop token is the reply's last token
  JobPriority priority = JobPriority::kInteractive;
  bool score_prompt = false;   // log-probability of every prompt token but the first
  bool prompt_logits = false;  // logits of every prompt position
};

/// What a job grew by since its reader last asked.
struct JobUpdate {
  std::vector<ScoredToken> tokens;         // in order
  std::vector<ScoredToken> prompt_scores;  // of prompt tokens 1, 2, ...; with JobSpec::score_prompt
  int64_t first_logits_position = 0;       // of the first row of `logits`
  std::vector<float> logits;               // [rows, vocab_size]; only with JobSpec::prompt_logits
  int64_t cached_prompt_tokens = 0;        // found in the KV cache; known with the first token
  bool finished = false;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;  // once finished

  bool empty() const {
    return tokens.empty() && prompt_scores.empty() && logits.empty() && !finished;
  }
};

/// Errors: InvalidArgument - an empty prompt, one longer than the context, a token id outside
///         [0, vocab_size), a negative max_new_tokens, prompt_logits together with max_new_tokens
///         or score_prompt, score_prompt or prompt_logits with a `reply`, a `reply` as long as
///         max_new_tokens, or sampling parameters that CheckSamplingParams refuses.
absl::Status CheckJobSpec(const JobSpec& spec, int64_t vocab_size, int64_t context_tokens);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_JOB_H_
