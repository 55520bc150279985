#include "tests/kernels/cuda/host_memory_backend.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/kv_rows.h"
#include "kernels/logit_summary.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

constexpr int64_t kAlignment = 256;
constexpr std::byte kGuard{0xa5};

/// The device's copies of what one call takes, in one piece of its memory with guards in between,
/// and an image of it on the host.
class Arena {
 public:
  Arena(const CudaStream& stream, int64_t bytes) : stream_(stream) {
    absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Create(stream.device(), bytes);
    CARAVAN_CHECK(buffer.ok());
    buffer_ = *std::move(buffer);
  }

  void Clear() {
    image_.assign(kAlignment, kGuard);
    outputs_.clear();
    guards_ = {{0, kAlignment}};
    uploaded_ = 0;
  }

  /// A copy of [count] values. Null stays null.
  template <typename T>
  T* In(const T* host, int64_t count) {
    if (host == nullptr) return nullptr;
    return reinterpret_cast<T*>(Place(host, count * static_cast<int64_t>(sizeof(T))));
  }
  /// The same, copied back by Finish.
  template <typename T>
  T* InOut(T* host, int64_t count) {
    T* const device = In(static_cast<const T*>(host), count);
    outputs_.push_back({OffsetOf(device), count * static_cast<int64_t>(sizeof(T)),
                        reinterpret_cast<std::byte*>(host)});
    return const_cast<T*>(device);
  }
  /// Of values that nobody knows yet.
  template <typename T>
  T* Out(T* host, int64_t count) {
    const std::vector<std::byte> poison(count * sizeof(T), std::byte{0xff});
    T* const device =
        reinterpret_cast<T*>(Place(poison.data(), static_cast<int64_t>(poison.size())));
    outputs_.push_back({OffsetOf(device), static_cast<int64_t>(poison.size()),
                        reinterpret_cast<std::byte*>(host)});
    return device;
  }

  /// Copies what was placed since the last time.
  void Upload() {
    const int64_t bytes = static_cast<int64_t>(image_.size());
    Expect(CopyToDevice(stream_, image_.data() + uploaded_, bytes - uploaded_,
                        buffer_.data() + uploaded_));
    uploaded_ = bytes;
  }

  /// Copies the outputs back.
  void Finish() {
    Expect(CopyToHost(stream_, buffer_.data(), static_cast<int64_t>(image_.size()), image_.data()));
    for (const Output& output : outputs_) {
      std::memcpy(output.host, image_.data() + output.offset, output.bytes);
    }
    for (const auto& [begin, end] : guards_) {
      EXPECT_TRUE(std::all_of(image_.begin() + begin, image_.begin() + end, [](std::byte byte) {
        return byte == kGuard;
      })) << "something was written outside its buffer";
    }
  }

  static void Expect(const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; }

 private:
  struct Output {
    int64_t offset;
    int64_t bytes;
    std::byte* host;
  };

  std::byte* Place(const void* host, int64_t bytes) {
    const int64_t offset = static_cast<int64_t>(image_.size());
    const int64_t end = RoundUp(offset + bytes, kAlignment) + kAlignment;
    CARAVAN_CHECK(end <= buffer_.bytes());
    image_.resize(end, kGuard);
    if (bytes > 0) std::memcpy(image_.data() + offset, host, bytes);
    guards_.emplace_back(offset + bytes, end);
    return buffer_.data() + offset;
  }

  int64_t OffsetOf(const void* device) const {
    return static_cast<const std::byte*>(device) - buffer_.data();
  }

  const CudaStream& stream_;
  DeviceBuffer buffer_;
  std::vector<std::byte> image_;
  std::vector<Output> outputs_;
  std::vector<std::pair<int64_t, int64_t>> guards_;
  int64_t uploaded_ = 0;
};

Matrix Placed(Arena& arena, const Matrix& host) {
  Matrix device = host;
  const int64_t bytes = host.layout == MatrixLayout::kTiled16
                            ? TiledBytes(host.dtype, host.rows, host.cols)
                            : DTypeBytes(host.dtype, host.rows * host.cols);
  device.data = arena.In(host.data, bytes);
  device.scale_inv = arena.In(host.scale_inv, Fp8Blocks(host.rows) * Fp8Blocks(host.cols));
  return device;
}

Matrix PlacedInTiles(Arena& arena, const Matrix& host) {
  if (host.layout == MatrixLayout::kTiled16) return Placed(arena, host);
  std::vector<std::byte> tiles(TiledBytes(host.dtype, host.rows, host.cols));
  TileMatrix(host.dtype, host.rows, host.cols, host.data, tiles.data());
  Matrix tiled = host;
  tiled.data = tiles.data();
  tiled.layout = MatrixLayout::kTiled16;
  return Placed(arena, tiled);
}

FfnWeights PlacedInTiles(Arena& arena, const FfnWeights& ffn) {
  return {PlacedInTiles(arena, ffn.gate), PlacedInTiles(arena, ffn.up),
          PlacedInTiles(arena, ffn.down)};
}

/// Experts as they come, each brought to the device. The first batch was taken before, for its
/// shapes.
class PlacedExperts : public ExpertBatches {
 public:
  PlacedExperts(Arena& arena, ExpertBatches& host, absl::Span<const LoadedExpert> first)
      : arena_(arena), host_(host), first_(first) {}

  absl::StatusOr<absl::Span<const LoadedExpert>> Next() override {
    absl::Span<const LoadedExpert> batch = std::exchange(first_, {});
    if (batch.empty()) {
      CARAVAN_ASSIGN_OR_RETURN(batch, host_.Next());
    }
    placed_.clear();
    for (const LoadedExpert& expert : batch) {
      placed_.push_back({expert.id, PlacedInTiles(arena_, expert.weights)});
    }
    arena_.Upload();
    return absl::MakeConstSpan(placed_);
  }
  bool ascending() const override { return host_.ascending(); }

 private:
  Arena& arena_;
  ExpertBatches& host_;
  absl::Span<const LoadedExpert> first_;
  std::vector<LoadedExpert> placed_;
};

class HostMemoryBackend : public Backend {
 public:
  HostMemoryBackend(const CudaStream& stream, std::unique_ptr<CudaBackend> backend,
                    int64_t arena_bytes)
      : backend_(std::move(backend)), arena_(stream, arena_bytes) {}

  std::string Name() const override { return backend_->Name(); }

  void Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) override {
    arena_.Clear();
    const int64_t num_rows = static_cast<int64_t>(ids.size());
    const Matrix device_table = Placed(arena_, table);
    const int32_t* const device_ids = arena_.In(ids.data(), num_rows);
    float* const device_out = arena_.Out(out, num_rows * table.cols);
    arena_.Upload();
    backend_->Embed(device_table, absl::MakeConstSpan(device_ids, num_rows), device_out);
    Finish();
  }

  void RmsNorm(const float* x, int64_t num_rows, int64_t width, const float* weight, float eps,
               float* out) override {
    arena_.Clear();
    const float* const device_weight = arena_.In(weight, width);
    const int64_t count = num_rows * width;
    float* const device_out = x == out ? arena_.InOut(out, count) : arena_.Out(out, count);
    const float* const device_x = x == out ? device_out : arena_.In(x, count);
    arena_.Upload();
    backend_->RmsNorm(device_x, num_rows, width, device_weight, eps, device_out);
    Finish();
  }

  void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) override {
    arena_.Clear();
    const Matrix device_w = PlacedInTiles(arena_, w);
    const float* const device_x = arena_.In(x, num_rows * w.cols);
    float* const device_out = arena_.Out(out, num_rows * w.rows);
    arena_.Upload();
    backend_->MatMul(device_w, device_x, num_rows, device_out);
    Finish();
  }

  void Add(const float* x, int64_t count, float* y) override {
    arena_.Clear();
    const float* const device_x = arena_.In(x, count);
    float* const device_y = arena_.InOut(y, count);
    arena_.Upload();
    backend_->Add(device_x, count, device_y);
    Finish();
  }

  void RotateQueries(const MlaShape& shape, const RopeTable& rope,
                     absl::Span<const SequenceRows> sequences, float* q) override {
    arena_.Clear();
    const RopeTable device_rope = PlacedRope(rope);
    float* const device_q =
        arena_.InOut(q, RowsOf(sequences) * shape.num_heads * shape.q_head_dim());
    arena_.Upload();
    backend_->RotateQueries(shape, device_rope, sequences, device_q);
    Finish();
  }

  void WriteKv(const MlaShape& shape, const RopeTable& rope, const float* norm_weight, float eps,
               absl::Span<const SequenceRows> sequences, const KvLayout& kv,
               const float* kv_a) override {
    arena_.Clear();
    const RopeTable device_rope = PlacedRope(rope);
    const float* const device_norm = arena_.In(norm_weight, shape.kv_lora_rank);
    const float* const device_kv_a = arena_.In(kv_a, RowsOf(sequences) * shape.kv_width());
    const std::vector<SequenceRows> device_sequences = PlacedSequences(shape, kv, sequences);
    arena_.Upload();
    backend_->WriteKv(shape, device_rope, device_norm, eps, device_sequences, kv, device_kv_a);
    Finish();
  }

  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& kv, const float* q,
                    float* out) override {
    arena_.Clear();
    const Matrix device_kv_b = Placed(arena_, kv_b);
    const std::vector<SequenceRows> device_sequences = PlacedSequences(shape, kv, sequences);
    const int64_t num_rows = RowsOf(sequences);
    const float* const device_q = arena_.In(q, num_rows * shape.num_heads * shape.q_head_dim());
    float* const device_out = arena_.Out(out, num_rows * shape.num_heads * shape.v_head_dim);
    arena_.Upload();
    backend_->MlaAttention(shape, device_kv_b, device_sequences, kv, device_q, device_out);
    Finish();
  }

  void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) override {
    arena_.Clear();
    const FfnWeights device_ffn = PlacedInTiles(arena_, ffn);
    const float* const device_x = arena_.In(x, num_rows * ffn.gate.cols);
    float* const device_out = arena_.Out(out, num_rows * ffn.down.rows);
    arena_.Upload();
    backend_->Ffn(device_ffn, device_x, num_rows, device_out);
    Finish();
  }

  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override {
    arena_.Clear();
    const int64_t chosen = num_rows * shape.num_experts_per_tok;
    const float* const device_logits = arena_.In(logits, num_rows * shape.n_routed_experts);
    const float* const device_bias = arena_.In(bias, shape.n_routed_experts);
    int32_t* const device_ids = arena_.Out(expert_ids, chosen);
    float* const device_weights = arena_.Out(weights, chosen);
    arena_.Upload();
    backend_->Route(shape, device_logits, device_bias, num_rows, device_ids, device_weights);
    Finish();
  }

  void SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                       const LogitQuestion* questions, LogitSummary* summaries) override {
    arena_.Clear();
    const float* const device_logits = arena_.In(logits, num_rows * vocab);
    const LogitQuestion* const device_questions = arena_.In(questions, num_rows);
    LogitSummary* const device_summaries = arena_.Out(summaries, num_rows);
    arena_.Upload();
    backend_->SummarizeLogits(device_logits, num_rows, vocab, device_questions, device_summaries);
    Finish();
  }

  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    arena_.Clear();
    CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const LoadedExpert> first, experts.Next());
    const int64_t hidden = first.empty() ? 0 : first[0].weights.gate.cols;
    const float* const device_x = arena_.In(x, num_rows * hidden);
    const int32_t* const device_ids = arena_.In(expert_ids, num_rows * k);
    const float* const device_weights = arena_.In(weights, num_rows * k);
    float* const device_out = arena_.InOut(out, num_rows * hidden);
    arena_.Upload();
    PlacedExperts placed(arena_, experts, first);
    const absl::Status status = backend_->RoutedExperts(placed, device_x, num_rows, device_ids,
                                                        device_weights, k, device_out);
    if (status.ok()) Finish();
    return status;
  }

 private:
  static int64_t RowsOf(absl::Span<const SequenceRows> sequences) {
    int64_t rows = 0;
    for (const SequenceRows& sequence : sequences) {
      rows = std::max(rows, sequence.first_row + sequence.num_rows);
    }
    return rows;
  }

  RopeTable PlacedRope(const RopeTable& rope) {
    const int64_t pairs = static_cast<int64_t>(rope.inv_freq.size());
    return {absl::MakeConstSpan(arena_.In(rope.inv_freq.data(), pairs), pairs), rope.amplitude};
  }

  /// The sequences with their blocks on the device; the lists of these lie in blocks_.
  std::vector<SequenceRows> PlacedSequences(const MlaShape& shape, const KvLayout& kv,
                                            absl::Span<const SequenceRows> sequences) {
    const int64_t block_bytes = kv.block_tokens * DTypeBytes(kv.dtype, shape.kv_width());
    blocks_.clear();
    blocks_.reserve(sequences.size());
    std::vector<SequenceRows> device(sequences.begin(), sequences.end());
    for (SequenceRows& sequence : device) {
      std::vector<std::byte*>& blocks = blocks_.emplace_back();
      for (std::byte* const block : sequence.kv_blocks) {
        blocks.push_back(arena_.InOut(block, block_bytes));
      }
      sequence.kv_blocks = blocks;
    }
    return device;
  }

  void Finish() {
    Arena::Expect(backend_->status());
    arena_.Finish();
  }

  const std::unique_ptr<CudaBackend> backend_;
  Arena arena_;
  std::vector<std::vector<std::byte*>> blocks_;
};

}  // namespace

std::unique_ptr<Backend> MakeHostMemoryBackend(const CudaStream& stream,
                                               std::unique_ptr<CudaBackend> backend,
                                               int64_t arena_bytes) {
  return std::make_unique<HostMemoryBackend>(stream, std::move(backend), arena_bytes);
}

}  // namespace caravan
