#ifndef CARAVAN_COORDINATOR_OPENAI_SAMPLING_FIELDS_H_
#define CARAVAN_COORDINATOR_OPENAI_SAMPLING_FIELDS_H_

// The fields that say how tokens are drawn, and where the reply stops.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "caravan/v1/pipeline.pb.h"
#include "coordinator/openai/request_fields.h"
#include "model/sampler.h"

namespace caravan {

/// temperature (OpenAI's default: 1), top_p, top_k, min_p, the penalties and logit_bias.
/// Errors: InvalidArgument - names the field.
absl::Status ParseSampling(const RequestFields& fields, int64_t vocab_size,
                           v1::SamplingParams& params);

/// "seed", any 64-bit integer; nullopt when there is none.
absl::StatusOr<std::optional<uint64_t>> ParseSeed(const RequestFields& fields);

/// "stop": a string, or a list of them.
absl::StatusOr<std::vector<std::string>> ParseStop(const RequestFields& fields);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_SAMPLING_FIELDS_H_
