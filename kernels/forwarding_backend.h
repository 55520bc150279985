#ifndef CARAVAN_KERNELS_FORWARDING_BACKEND_H_
#define CARAVAN_KERNELS_FORWARDING_BACKEND_H_

// What backends that change or watch a part of another one's work derive from.

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"

namespace caravan {

/// Hands every operation to the backend behind it.
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> backend);

  std::string Name() const override;
  Memory& memory() override;
  void Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) override;
  void RmsNorm(const float* x, int64_t num_rows, int64_t width, const float* weight, float eps,
               float* out) override;
  void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) override;
  void Add(const float* x, int64_t count, float* y) override;
  void RotateQueries(const MlaShape& shape, const RopeTable& rope,
                     absl::Span<const SequenceRows> sequences, float* q) override;
  void WriteKv(const MlaShape& shape, const RopeTable& rope, const float* norm_weight, float eps,
               absl::Span<const SequenceRows> sequences, const KvLayout& kv,
               const float* kv_a) override;
  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& kv, const float* q,
                    float* out) override;
  void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) override;
  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override;
  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override;
  void SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                       const LogitQuestion* questions, LogitSummary* summaries) override;

 protected:
  Backend& backend() { return *backend_; }

 private:
  const std::unique_ptr<Backend> backend_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_FORWARDING_BACKEND_H_
