#include "coordinator/openai/sampling_fields.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr double kDefaultTemperature = 1;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;

// To the sampler 0 means "all", to OpenAI's clients a nucleus of the likeliest token alone.
constexpr float kSmallestTopP = 1e-9f;

absl::Status ParseLogitBias(const RequestFields& fields, int64_t vocab_size,
                            v1::SamplingParams& params) {
  if (!fields.Has("logit_bias")) return absl::OkStatus();
  const json& biases = fields.Value("logit_bias");
  CARAVAN_ASSIGN_OR_RETURN(const RequestFields by_id, RequestFields::Of(biases, "logit_bias"));
  if (biases.size() > static_cast<size_t>(kMaxLogitBiases)) {
    return ParamError("logit_bias", absl::StrCat("may name at most ", kMaxLogitBiases, " tokens"));
  }
  for (const auto& [name, ignored] : biases.items()) {
    int64_t id = 0;
    if (!absl::SimpleAtoi(name, &id) || id < 0 || id >= vocab_size ||
        absl::StrCat(id) != name) {  // one spelling each, so that no token comes twice
      return ParamError("logit_bias",
                        absl::StrCat("\"", name, "\" is no token id from 0 to ", vocab_size - 1));
    }
    CARAVAN_ASSIGN_OR_RETURN(const double bias, by_id.Number(name, -100, 100));
    v1::LogitBias& out = *params.add_logit_biases();
    out.set_token_id(static_cast<uint32_t>(id));
    out.set_bias(static_cast<float>(bias));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseSampling(const RequestFields& fields, int64_t vocab_size,
                           v1::SamplingParams& params) {
  CARAVAN_ASSIGN_OR_RETURN(const double temperature,
                           fields.Number("temperature", 0, 100, kDefaultTemperature));
  CARAVAN_ASSIGN_OR_RETURN(const double top_p, fields.Number("top_p", 0, 1, 1));
  // -1 is how some say that there is no such limit.
  CARAVAN_ASSIGN_OR_RETURN(const int64_t top_k, fields.Int("top_k", -1, INT32_MAX, 0));
  CARAVAN_ASSIGN_OR_RETURN(const double min_p, fields.Number("min_p", 0, 1, 0));
  CARAVAN_ASSIGN_OR_RETURN(const double frequency, fields.Number("frequency_penalty", -2, 2, 0));
  CARAVAN_ASSIGN_OR_RETURN(const double presence, fields.Number("presence_penalty", -2, 2, 0));
  CARAVAN_ASSIGN_OR_RETURN(const double repetition, fields.Number("repetition_penalty", 0, 100, 1));
  if (repetition == 0) return ParamError("repetition_penalty", "must be more than 0");
  params.set_temperature(static_cast<float>(temperature));
  params.set_top_p(std::max(static_cast<float>(top_p), kSmallestTopP));
  params.set_top_k(static_cast<uint32_t>(std::max<int64_t>(top_k, 0)));
  params.set_min_p(static_cast<float>(min_p));
  params.set_frequency_penalty(static_cast<float>(frequency));
  params.set_presence_penalty(static_cast<float>(presence));
  params.set_repetition_penalty(static_cast<float>(repetition));
  return ParseLogitBias(fields, vocab_size, params);
}

absl::StatusOr<std::optional<uint64_t>> ParseSeed(const RequestFields& fields) {
  if (!fields.Has("seed")) return std::optional<uint64_t>();
  const json& value = fields.Value("seed");
  if (!value.is_number_integer()) return ParamError("seed", "must be a 64-bit integer");
  if (value.is_number_unsigned()) return std::optional<uint64_t>(value.get<uint64_t>());
  return std::optional<uint64_t>(static_cast<uint64_t>(value.get<int64_t>()));
}

absl::StatusOr<std::vector<std::string>> ParseStop(const RequestFields& fields) {
  std::vector<std::string> stops;
  if (!fields.Has("stop")) return stops;
  const json& value = fields.Value("stop");
  const json list = value.is_array() ? value : json::array({value});
  if (list.size() > kMaxStops) {
    return ParamError("stop", absl::StrCat("may be at most ", kMaxStops, " strings"));
  }
  for (const json& stop : list) {
    if (!stop.is_string()) return ParamError("stop", "must be a string or a list of strings");
    const std::string text = stop.get<std::string>();
    if (text.empty() || text.size() > kMaxStopBytes) {
      return ParamError("stop", absl::StrCat("a string must have 1 to ", kMaxStopBytes, " bytes"));
    }
    stops.push_back(text);
  }
  return stops;
}

}  // namespace caravan
