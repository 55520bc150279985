#ifndef CARAVAN_TESTS_MODEL_FAKE_TENSOR_SOURCE_H_
#define CARAVAN_TESTS_MODEL_FAKE_TENSOR_SOURCE_H_

// Tensors without bytes.

#include <map>
#include <string>
#include <vector>

#include "kernels/matrix.h"
#include "model/pack/pack_manifest.h"
#include "model/tensor_source.h"
#include "model/tensor_table.h"

namespace caravan {

class FakeTensorSource : public TensorSource {
 public:
  /// Adds each of `specs`: vectors and the router in BF16, other matrices in `matrix_dtype`, with
  /// their scales where that is FP8.
  void Add(const std::vector<TensorSpec>& specs, DType matrix_dtype) {
    for (const TensorSpec& spec : specs) {
      const bool plain = spec.shape.size() == 1 || spec.tensor_class == TensorClass::kRouter;
      tensors[spec.name] = {plain ? DType::kBF16 : matrix_dtype, spec.shape,
                            MatrixLayout::kRowMajor};
      if (plain || matrix_dtype != DType::kF8E4M3) continue;
      tensors[ScaleName(spec.name)] = {DType::kF32,
                                       {Fp8Blocks(spec.shape[0]), Fp8Blocks(spec.shape[1])},
                                       MatrixLayout::kRowMajor};
    }
  }

  const TensorInfo* Find(absl::string_view name) const override {
    const auto it = tensors.find(std::string(name));
    return it == tensors.end() ? nullptr : &it->second;
  }

  absl::Status ReadPart(absl::string_view name, int64_t, absl::Span<std::byte>) const override {
    return absl::DataLossError(std::string(name) + ": has no bytes");
  }

  const ExpertFile* FindExperts(int layer) const override {
    const auto it = expert_files.find(layer);
    return it == expert_files.end() ? nullptr : &it->second;
  }

  std::map<std::string, TensorInfo> tensors;
  std::map<int, ExpertFile> expert_files;  // by layer
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_MODEL_FAKE_TENSOR_SOURCE_H_
