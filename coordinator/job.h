#ifndef CARAVAN_COORDINATOR_JOB_H_
#define CARAVAN_COORDINATOR_JOB_H_

// What a job asks for and what its reader gets, in token ids: text is the services' business.

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "caravan/v1/jobs.pb.h"
#include "caravan/v1/pipeline.pb.h"
#include "model/sampler.h"

namespace caravan {

/// A job either generates (max_new_tokens) or scores its prompt (prompt_logits).
struct JobSpec {
  std::vector<int32_t> prompt;
  int64_t max_new_tokens = 0;  // cut to what the context leaves
  v1::SamplingParams sampling;
  std::vector<int32_t> stop_token_ids;  // the stop token is the reply's last token
  bool prompt_logits = false;           // logits of every prompt position
};

/// What a job grew by since its reader last asked.
struct JobUpdate {
  std::vector<SampledToken> tokens;   // in order
  int64_t first_logits_position = 0;  // of the first row of `logits`
  std::vector<float> logits;          // [rows, vocab_size]; only with JobSpec::prompt_logits
  bool finished = false;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;  // once finished
};

/// Errors: InvalidArgument - an empty prompt, one longer than the context, a token id outside
///         [0, vocab_size), a negative max_new_tokens, prompt_logits together with max_new_tokens,
///         or sampling parameters that CheckSamplingParams refuses.
absl::Status CheckJobSpec(const JobSpec& spec, int64_t vocab_size, int64_t context_tokens);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_JOB_H_
