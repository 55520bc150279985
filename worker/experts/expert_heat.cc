#include "worker/experts/expert_heat.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/json.h"
#include "base/output_file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "caravan expert heat";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxBytes = int64_t{64} << 20;
// Steps of any run, and more than any sum of uses has bits.
constexpr double kMaxScore = 1e15;

/// What a score is relative to.
double ScoreOfOneUse(const CachePolicy& policy, int64_t step) {
  return policy.AfterUse(kNoScore, {.step = step, .rows = 1, .weight = 1});
}

}  // namespace

std::string EncodeExpertHeat(uint64_t model_fingerprint, const ExpertCache& cache, int64_t step) {
  const ExpertCache::Shape& shape = cache.shape();
  const double now = ScoreOfOneUse(cache.policy(), step);
  json scores = json::array();
  for (int layer = shape.first_layer; layer < shape.first_layer + shape.num_layers; ++layer) {
    json& of_layer = scores.emplace_back(json::array());
    for (int expert = 0; expert < shape.experts_per_layer; ++expert) {
      const double score = cache.score({layer, expert});
      of_layer.push_back(score == kNoScore ? json() : json(score - now));
    }
  }
  const json heat = {{"format", kFormat},
                     {"version", kVersion},
                     {"model_fingerprint", absl::StrFormat("%016x", model_fingerprint)},
                     {"policy", std::string(cache.policy().name())},
                     {"first_layer", shape.first_layer},
                     {"scores", std::move(scores)}};
  return absl::StrCat(heat.dump(), "\n");
}

absl::Status WriteExpertHeat(const std::string& path, absl::string_view heat) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(heat));
  return file->Commit();
}

absl::Status LoadExpertHeat(const std::string& path, uint64_t model_fingerprint,
                            ExpertCache& cache) {
  const ExpertCache::Shape& shape = cache.shape();
  CARAVAN_ASSIGN_OR_RETURN(const json heat, ReadJsonFile(path, kMaxBytes));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(heat, path));
  CARAVAN_ASSIGN_OR_RETURN(const std::string format, fields.String("format"));
  if (format != kFormat) return fields.Error("format", absl::StrCat("is not \"", kFormat, "\""));
  CARAVAN_RETURN_IF_ERROR(fields.Int("version", kVersion, kVersion).status());
  CARAVAN_ASSIGN_OR_RETURN(const std::string fingerprint, fields.String("model_fingerprint"));
  if (fingerprint != absl::StrFormat("%016x", model_fingerprint)) {
    return fields.Error("model_fingerprint", "is another model's");
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::string policy, fields.String("policy"));
  if (policy != cache.policy().name()) {
    return fields.Error("policy",
                        absl::StrCat("is \"", policy, "\", not \"", cache.policy().name(), "\""));
  }
  CARAVAN_ASSIGN_OR_RETURN(const int64_t first_layer, fields.Int("first_layer", 0, 1 << 16));
  CARAVAN_ASSIGN_OR_RETURN(const json* const scores, fields.Array("scores"));
  const double now = ScoreOfOneUse(cache.policy(), 0);
  std::vector<std::pair<ExpertKey, double>> found;
  for (size_t i = 0; i < scores->size(); ++i) {
    const json& of_layer = (*scores)[i];
    if (!of_layer.is_array() || of_layer.size() != static_cast<size_t>(shape.experts_per_layer)) {
      return fields.Error("scores", absl::StrCat("entry ", i, " is no list of ",
                                                 shape.experts_per_layer, " scores"));
    }
    for (size_t expert = 0; expert < of_layer.size(); ++expert) {
      const json& score = of_layer[expert];
      if (score.is_null()) continue;
      if (!score.is_number() || !(std::abs(score.get<double>()) <= kMaxScore)) {
        return fields.Error("scores",
                            absl::StrCat("entry ", i, ", expert ", expert, " is no score"));
      }
      const int64_t layer = first_layer + static_cast<int64_t>(i);
      if (layer < shape.first_layer || layer >= shape.first_layer + shape.num_layers) continue;
      found.push_back(
          {{static_cast<int32_t>(layer), static_cast<int32_t>(expert)}, now + score.get<double>()});
    }
  }
  for (const auto& [key, score] : found) cache.SetScore(key, score);
  return absl::OkStatus();
}

}  // namespace caravan
