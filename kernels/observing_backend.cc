#include "kernels/observing_backend.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "kernels/forwarding_backend.h"
#include "kernels/kv_rows.h"
#include "kernels/quant/dequantize.h"

namespace caravan {
namespace {

class ObservingBackend : public ForwardingBackend {
 public:
  ObservingBackend(std::unique_ptr<Backend> backend, InputObserver* observer)
      : ForwardingBackend(std::move(backend)), observer_(*observer) {}

  std::string Name() const override { return ForwardingBackend::Name() + ", observed"; }

  void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) override {
    if (num_rows > 0) observer_.Observe(w, x, num_rows);
    backend().MatMul(w, x, num_rows, out);
  }

  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& kv, const float* q,
                    float* out) override {
    // The sequences' own rows are what WriteKv has just put there.
    latent_.resize(static_cast<size_t>(shape.kv_lora_rank));
    for (const SequenceRows& sequence : sequences) {
      for (int64_t i = 0; i < sequence.num_rows; ++i) {
        DequantizeRow(kv.dtype, KvRow(shape, kv, sequence, sequence.first_position + i),
                      shape.kv_lora_rank, latent_.data());
        observer_.Observe(kv_b, latent_.data(), 1);
      }
    }
    backend().MlaAttention(shape, kv_b, sequences, kv, q, out);
  }

  void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) override {
    if (num_rows > 0) ObserveFfn(ffn, x, num_rows);
    backend().Ffn(ffn, x, num_rows, out);
  }

  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    ObservedExperts observed(*this, experts, x, absl::MakeConstSpan(expert_ids, num_rows * k), k);
    return backend().RoutedExperts(observed, x, num_rows, expert_ids, weights, k, out);
  }

 private:
  /// Shows the inputs of each expert when it comes: while the backend behind asks for the next one,
  /// it is in no other operation.
  class ObservedExperts : public ExpertBatches {
   public:
    ObservedExperts(ObservingBackend& backend, ExpertBatches& experts, const float* x,
                    absl::Span<const int32_t> expert_ids, int64_t k)
        : backend_(backend), experts_(experts), x_(x), expert_ids_(expert_ids), k_(k) {}

    absl::StatusOr<absl::Span<const LoadedExpert>> Next() override {
      CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const LoadedExpert> batch, experts_.Next());
      for (const LoadedExpert& expert : batch) {
        const int64_t width = expert.weights.gate.cols;
        chosen_.clear();
        for (size_t i = 0; i < expert_ids_.size(); ++i) {
          if (expert_ids_[i] != expert.id) continue;
          const float* const row = x_ + static_cast<int64_t>(i) / k_ * width;
          chosen_.insert(chosen_.end(), row, row + width);
        }
        backend_.ObserveFfn(expert.weights, chosen_.data(),
                            static_cast<int64_t>(chosen_.size()) / width);
      }
      return batch;
    }

    bool ascending() const override { return experts_.ascending(); }

   private:
    ObservingBackend& backend_;
    ExpertBatches& experts_;
    const float* const x_;
    const absl::Span<const int32_t> expert_ids_;
    const int64_t k_;
    std::vector<float> chosen_;  // the rows of x that chose an expert
  };

  void ObserveFfn(const FfnWeights& ffn, const float* x, int64_t num_rows) {
    observer_.Observe(ffn.gate, x, num_rows);
    observer_.Observe(ffn.up, x, num_rows);
    const size_t count = static_cast<size_t>(num_rows * ffn.gate.rows);
    gate_.resize(count);
    up_.resize(count);
    backend().MatMul(ffn.gate, x, num_rows, gate_.data());
    backend().MatMul(ffn.up, x, num_rows, up_.data());
    for (size_t i = 0; i < count; ++i) gate_[i] *= up_[i] / (1 + std::exp(-gate_[i]));
    observer_.Observe(ffn.down, gate_.data(), num_rows);
  }

  InputObserver& observer_;
  std::vector<float> latent_;  // [kv_lora_rank]
  std::vector<float> gate_;    // [rows, inter]
  std::vector<float> up_;      // the same
};

}  // namespace

std::unique_ptr<Backend> MakeObservingBackend(std::unique_ptr<Backend> backend,
                                              InputObserver* observer) {
  return std::make_unique<ObservingBackend>(std::move(backend), observer);
}

}  // namespace caravan
