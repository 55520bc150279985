#include "kernels/forwarding_backend.h"

#include <utility>

namespace caravan {

ForwardingBackend::ForwardingBackend(std::unique_ptr<Backend> backend)
    : backend_(std::move(backend)) {}

std::string ForwardingBackend::Name() const { return backend_->Name(); }

Memory& ForwardingBackend::memory() { return backend_->memory(); }

void ForwardingBackend::Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) {
  backend_->Embed(table, ids, out);
}

void ForwardingBackend::RmsNorm(const float* x, int64_t num_rows, int64_t width,
                                const float* weight, float eps, float* out) {
  backend_->RmsNorm(x, num_rows, width, weight, eps, out);
}

void ForwardingBackend::MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) {
  backend_->MatMul(w, x, num_rows, out);
}

void ForwardingBackend::Add(const float* x, int64_t count, float* y) { backend_->Add(x, count, y); }

void ForwardingBackend::RotateQueries(const MlaShape& shape, const RopeTable& rope,
                                      absl::Span<const SequenceRows> sequences, float* q) {
  backend_->RotateQueries(shape, rope, sequences, q);
}

void ForwardingBackend::WriteKv(const MlaShape& shape, const RopeTable& rope,
                                const float* norm_weight, float eps,
                                absl::Span<const SequenceRows> sequences, const KvLayout& kv,
                                const float* kv_a) {
  backend_->WriteKv(shape, rope, norm_weight, eps, sequences, kv, kv_a);
}

void ForwardingBackend::MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                                     absl::Span<const SequenceRows> sequences, const KvLayout& kv,
                                     const float* q, float* out) {
  backend_->MlaAttention(shape, kv_b, sequences, kv, q, out);
}

void ForwardingBackend::Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) {
  backend_->Ffn(ffn, x, num_rows, out);
}

void ForwardingBackend::Route(const RouterShape& shape, const float* logits, const float* bias,
                              int64_t num_rows, int32_t* expert_ids, float* weights) {
  backend_->Route(shape, logits, bias, num_rows, expert_ids, weights);
}

absl::Status ForwardingBackend::RoutedExperts(ExpertBatches& experts, const float* x,
                                              int64_t num_rows, const int32_t* expert_ids,
                                              const float* weights, int64_t k, float* out) {
  return backend_->RoutedExperts(experts, x, num_rows, expert_ids, weights, k, out);
}

void ForwardingBackend::SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                                        const LogitQuestion* questions, LogitSummary* summaries) {
  backend_->SummarizeLogits(logits, num_rows, vocab, questions, summaries);
}

}  // namespace caravan
