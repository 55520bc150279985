#include "kernels/cuda/cuda_backend.h"

#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_graphs.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/expert_ffn.h"
#include "kernels/cuda/expert_routing.h"
#include "kernels/cuda/kv_ops.h"
#include "kernels/cuda/logit_summary.h"
#include "kernels/cuda/matrix_product.h"
#include "kernels/cuda/mla_attention.h"
#include "kernels/cuda/router.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/sequence_table.h"

namespace caravan {
namespace {

class CudaBackendImpl : public CudaBackend {
 public:
  CudaBackendImpl(const CudaStream& stream, const CudaBackendLimits& limits, int64_t budget_bytes,
                  SequenceTable table, CudaMlaAttention attention, DeviceBuffer activations,
                  CudaLogitSummarizer summarizer, std::unique_ptr<CudaExpertFfn> ffn)
      : stream_(stream),
        limits_(limits),
        memory_(stream, budget_bytes, [this] { return status_; }),
        table_(std::move(table)),
        attention_(std::move(attention)),
        activations_(std::move(activations)),
        summarizer_(std::move(summarizer)),
        ffn_(std::move(ffn)),
        graphs_(stream) {}

  std::string Name() const override { return stream_.device().Title(); }

  Memory& memory() override { return memory_; }

  absl::Status status() const override { return status_; }

  /// Keeps the stream as long as this.
  void Own(std::unique_ptr<CudaStream> stream) { owned_stream_ = std::move(stream); }

  void Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) override {
    if (!IsReady()) return;
    Keep(LaunchEmbed(stream_, table, ids.data(), static_cast<int64_t>(ids.size()), out));
  }

  void RmsNorm(const float* x, int64_t num_rows, int64_t width, const float* weight, float eps,
               float* out) override {
    if (!IsReady()) return;
    Keep(LaunchRmsNorm(stream_, x, num_rows, width, weight, eps, out));
  }

  void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) override {
    if (!IsReady()) return;
    CARAVAN_CHECK(num_rows <= limits_.ffn.max_rows && w.cols <= limits_.max_cols);
    Keep(MultiplyFloats(stream_, w, x, num_rows, activations_.data(), out));
  }

  void Add(const float* x, int64_t count, float* y) override {
    if (!IsReady()) return;
    Keep(LaunchAdd(stream_, x, count, y));
  }

  void RotateQueries(const MlaShape& shape, const RopeTable& rope,
                     absl::Span<const SequenceRows> sequences, float* q) override {
    WithRows(sequences, [&](const SequenceRowsView& rows) {
      return LaunchRotateQueries(stream_, shape, rope, rows, q);
    });
  }

  void WriteKv(const MlaShape& shape, const RopeTable& rope, const float* norm_weight, float eps,
               absl::Span<const SequenceRows> sequences, const KvLayout& kv,
               const float* kv_a) override {
    WithRows(sequences, [&](const SequenceRowsView& rows) {
      return LaunchWriteKv(stream_, shape, rope, norm_weight, eps, rows, kv, kv_a);
    });
  }

  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& kv, const float* q,
                    float* out) override {
    WithRows(sequences, [&](const SequenceRowsView& rows) {
      const absl::Status queued =
          attention_.Run(stream_, shape, kv_b, rows, table_.places(), kv, q, out);
      is_repeatable_ = is_repeatable_ && attention_.is_one_batch();
      return queued;
    });
  }

  void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) override {
    if (!IsReady()) return;
    Keep(ffn_->RunDense(ffn, x, num_rows, out));
  }

  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override {
    if (!IsReady()) return;
    Keep(LaunchRoute(stream_, shape, logits, bias, num_rows, expert_ids, weights));
  }

  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    if (!IsReady()) return status_;
    return ffn_->RunExperts(experts, x, num_rows, expert_ids, weights, k, out);
  }

  absl::Status Repeat(const RepeatKey& key, absl::Span<const SequenceRows> sequences,
                      absl::FunctionRef<absl::Status()> ops) override {
    if (is_repeating_) return ops();  // as a part of what is repeated
    if (!IsReady()) return status_;
    // Graphs know layers by how far they are from this one.
    if (const absl::Status uploaded = table_.Upload(stream_, sequences).status(); !uploaded.ok()) {
      Keep(uploaded);
      return uploaded;
    }
    is_repeating_ = true;
    const CudaGraphs::Key graph = {key.part, key.num_rows, reinterpret_cast<int64_t>(key.x),
                                   MostAttentionSplits(table_.places())};
    const absl::Status done = graphs_.Run(graph, [&]() -> absl::StatusOr<bool> {
      is_repeatable_ = true;
      CARAVAN_RETURN_IF_ERROR(ops());
      CARAVAN_RETURN_IF_ERROR(status_);
      return is_repeatable_;
    });
    is_repeating_ = false;
    return done;
  }

  void SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                       const LogitQuestion* questions, LogitSummary* summaries) override {
    if (!IsReady()) return;
    Keep(summarizer_.Run(stream_, logits, num_rows, vocab, questions, summaries));
  }

 private:
  void Keep(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  /// Whether operations can be queued, by this thread.
  bool IsReady() {
    Keep(stream_.device().MakeCurrent());
    return status_.ok();
  }

  /// launch(the sequences on the device).
  template <typename Launch>
  void WithRows(absl::Span<const SequenceRows> sequences, const Launch& launch) {
    if (!IsReady()) return;
    if (const std::optional<SequenceRowsView> rows = table_.Find(sequences)) {
      Keep(launch(*rows));
      return;
    }
    CARAVAN_CHECK(!is_repeating_);
    absl::StatusOr<SequenceRowsView> rows = table_.Upload(stream_, sequences);
    Keep(rows.ok() ? launch(*rows) : rows.status());
  }

  std::unique_ptr<CudaStream> owned_stream_;  // null: it is someone else's
  const CudaStream& stream_;
  const CudaBackendLimits limits_;
  absl::Status status_;
  CudaMemory memory_;
  SequenceTable table_;
  CudaMlaAttention attention_;
  DeviceBuffer activations_;  // of a product, quantized
  CudaLogitSummarizer summarizer_;
  const std::unique_ptr<CudaExpertFfn> ffn_;
  CudaGraphs graphs_;
  bool is_repeating_ = false;
  // Whether what is repeated launches the same for the same key.
  bool is_repeatable_ = true;
};

/// budget_bytes: of memory().
absl::StatusOr<std::unique_ptr<CudaBackendImpl>> Make(const CudaStream& stream,
                                                      const CudaBackendLimits& limits,
                                                      int64_t budget_bytes) {
  const CudaDevice& device = stream.device();
  CARAVAN_ASSIGN_OR_RETURN(SequenceTable table, SequenceTable::Create(device, limits.ffn.max_rows,
                                                                      limits.max_kv_blocks));
  CARAVAN_ASSIGN_OR_RETURN(CudaMlaAttention attention,
                           CudaMlaAttention::Create(device, limits.attention_scratch_bytes));
  CARAVAN_ASSIGN_OR_RETURN(
      DeviceBuffer activations,
      DeviceBuffer::Create(device, ActivationBytes(limits.ffn.max_rows, limits.max_cols)));
  CARAVAN_ASSIGN_OR_RETURN(
      CudaLogitSummarizer summarizer,
      CudaLogitSummarizer::Create(stream, limits.max_logit_rows, limits.max_vocab));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CudaExpertFfn> ffn,
                           CudaExpertFfn::Create(stream, limits.ffn));
  return std::make_unique<CudaBackendImpl>(stream, limits, budget_bytes, std::move(table),
                                           std::move(attention), std::move(activations),
                                           std::move(summarizer), std::move(ffn));
}

}  // namespace

absl::Status CheckCudaSizes(const MlaShape& mla, const RouterShape& router, int64_t vocab_size) {
  // What lies in registers and shared memory; the kernels check it too.
  struct Size {
    absl::string_view name;
    int64_t value;
    int64_t most;
  };
  for (const Size& size :
       {Size{"kv_lora_rank", mla.kv_lora_rank, kMaxLatent},
        Size{"qk_rope_head_dim", mla.qk_rope_head_dim, 128},
        Size{"qk_nope_head_dim", mla.qk_nope_head_dim, 256},
        Size{"n_routed_experts", router.n_routed_experts, 2048},
        Size{"num_experts_per_tok", router.num_experts_per_tok, kMaxChosenExperts},
        Size{"vocab_size", vocab_size, int64_t{kMaxLogitChunks} * kLogitChunk}}) {
    if (size.value <= size.most) continue;
    return absl::InvalidArgumentError(absl::StrCat("the CUDA backend takes models of ", size.name,
                                                   " up to ", size.most, ", not ", size.value));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(const CudaStream& stream,
                                                                 const CudaBackendLimits& limits) {
  return Make(stream, limits, std::numeric_limits<int64_t>::max());
}

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Open(const CudaDevice& device,
                                                               const CudaBackendLimits& limits,
                                                               int64_t budget_bytes) {
  const int64_t scratch = CudaScratchBytes(limits);
  if (scratch > budget_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(FormatByteSize(scratch), " of scratch for steps do not fit the budget of ",
                     FormatByteSize(budget_bytes), " on cuda:", device.ordinal()));
  }
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CudaStream> stream, CudaStream::Create(device));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CudaBackendImpl> backend,
                           Make(*stream, limits, budget_bytes - scratch));
  backend->Own(std::move(stream));
  return backend;
}

}  // namespace caravan
