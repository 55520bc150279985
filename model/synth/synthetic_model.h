#ifndef CARAVAN_MODEL_SYNTH_SYNTHETIC_MODEL_H_
#define CARAVAN_MODEL_SYNTH_SYNTHETIC_MODEL_H_

// A model of any published shape whose weights are random numbers, for benchmarks: as large and as
// much work as the real one, and worth nothing as a model. Nothing of it lies anywhere; what is
// read is computed. It has no tokenizer.
//
// Activations keep their size from layer to layer: a matrix has the standard deviation 1 /
// sqrt(columns), so that it maps values of variance 1 to such, the embedding 1, norms are 1 with
// noise of 0.02. Each layer thus adds what has a variance of about 1 or less to the residual
// stream. o_proj has half of that: attention is a mean over the context, which makes tokens alike.
// A router's logits have variance 1 for any token, so tokens that differ choose differently; the
// correction bias is noise of 0.01, small against the spread of the scores.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "model/pack/pack_types.h"
#include "model/stored_model.h"
#include "model/synth/random_tensor.h"

namespace caravan {

/// The fingerprint covers the config, the formats and the seed, and with them every weight.
class SyntheticModel : public StoredModel {
 public:
  struct Options {
    std::string config_path;  // a config.json
    int num_layers = 0;       // only the first so many; 0: as the config says
    /// nullopt stands for what checkpoints with this config have: FP8 blocks where it has a
    /// quantization_config (embedding, router, head and eh_proj are BF16 nevertheless), else BF16.
    PackTypes types;
    uint64_t seed = 0;
  };

  /// Errors: as ReadFile and ParseModelConfig; InvalidArgument - num_layers is more than the config
  ///         has, or less than 0. Each names the file.
  static absl::StatusOr<std::unique_ptr<SyntheticModel>> Create(const Options& options);

  std::vector<std::string> TensorNames() const override;
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;
  absl::StatusOr<TextFile> ReadText(absl::string_view name) const override;

 private:
  struct Tensor {
    TensorInfo info;
    RandomTensor values;
  };
  explicit SyntheticModel(uint64_t seed) : seed_(seed) {}

  void Add(const std::string& name, TensorInfo info, float mean, float stddev);
  void AddAll(const PackTypes& types, bool is_fp8);

  const uint64_t seed_;
  absl::flat_hash_map<std::string, Tensor> tensors_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_SYNTH_SYNTHETIC_MODEL_H_
