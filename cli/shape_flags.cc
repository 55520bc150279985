#include "cli/shape_flags.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/kv_rows.h"
#include "model/pack/pack_types.h"
#include "model/synth/synthetic_model.h"

namespace caravan {

void ShapeFlags::AddTo(CLI::App& command) {
  CLI::Option* const model_option = command.add_option(
      "--model", model,
      "The model, as other commands take it, or the config.json of one that is not here");
  model_option->required();
  pack.AddFormats(command, model_option,
                  "the formats are the model's, or those of a checkpoint with that config.json");
  CLI::Option* const bits_option =
      command
          .add_option("--bits", bits,
                      "All matrices of that config.json in the format of so many bits a weight: "
                      "2.6 (q2_K), 3.4 (q3_K), 4.5 (q4_K), 5.5 (q5_K), 6.6 (q6_K), 8 (fp8), 8.5 "
                      "(q8_0), 16 (bf16)")
          ->check(CLI::Range(0.1, 64.0));
  for (const char* const other : {"--preset", "--experts", "--dense"}) {
    bits_option->excludes(command.get_option(other));
  }
}

absl::StatusOr<std::unique_ptr<StoredModel>> ShapeFlags::Open() const {
  if (!absl::EndsWith(model, ".json")) {
    if (bits == 0 && pack.preset.empty() && pack.experts.empty() && pack.dense.empty()) {
      return OpenStoredModel(model);
    }
    return absl::InvalidArgumentError(absl::StrCat("--bits, --preset, --experts, --dense: ", model,
                                                   " has its formats; they are for a config.json"));
  }
  SyntheticModel::Options shape;
  shape.config_path = model;
  if (bits != 0) {
    absl::StatusOr<PackTypes> types = PackTypesOfBits(bits);
    if (!types.ok()) return Annotate(types.status(), "--bits");
    shape.types = *types;
  } else {
    CARAVAN_ASSIGN_OR_RETURN(shape.types, pack.Types());
  }
  return SyntheticModel::Create(shape);
}

absl::Status CheckContext(const ModelConfig& config, int64_t context_tokens, DType kv_dtype) {
  if (context_tokens > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context: the model has positions up to ", config.max_position_embeddings));
  }
  return Annotate(CheckKvDType(config.Mla(), kv_dtype), "--kv");
}

}  // namespace caravan
