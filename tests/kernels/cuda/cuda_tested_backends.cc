#include <algorithm>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/cuda/mla_attention.h"
#include "kernels/forwarding_backend.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/cuda/host_memory_backend.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

// For the largest cases of the tests.
constexpr CudaBackendLimits kLimits = {
    .ffn = {.max_rows = 1200,
            .max_chosen = 8,
            .hidden = 1024,
            .expert_inter = 1024,
            .dense_inter = 1024},
    .max_cols = 7168,
    .max_kv_blocks = 1024,
    .max_logit_rows = 64,
    .max_vocab = 300000,
    .attention_scratch_bytes = int64_t{64} << 20,
};
constexpr int64_t kArenaBytes = int64_t{1} << 30;

/// One backend for all tests: its memory takes long to get.
Backend& SharedBackend() {
  static Backend& shared = *[] {
    absl::StatusOr<CudaDevice> device = CudaDevice::Open(0);
    CARAVAN_CHECK(device.ok());  // else no test would run
    absl::StatusOr<std::unique_ptr<CudaStream>> stream = CudaStream::Create(*device);
    CARAVAN_CHECK(stream.ok());
    static const CudaStream& kept = *stream->release();
    absl::StatusOr<std::unique_ptr<CudaBackend>> backend = CudaBackend::Create(kept, kLimits);
    CARAVAN_CHECK(backend.ok());
    return MakeHostMemoryBackend(kept, *std::move(backend), kArenaBytes).release();
  }();
  return shared;
}

/// The shared backend, for those who own theirs.
class Borrowed : public Backend {
 public:
  std::string Name() const override { return SharedBackend().Name(); }
  void Embed(const Matrix& table, absl::Span<const int32_t> ids, float* out) override {
    SharedBackend().Embed(table, ids, out);
  }
  void RmsNorm(const float* x, int64_t num_rows, int64_t width, const float* weight, float eps,
               float* out) override {
    SharedBackend().RmsNorm(x, num_rows, width, weight, eps, out);
  }
  void MatMul(const Matrix& w, const float* x, int64_t num_rows, float* out) override {
    SharedBackend().MatMul(w, x, num_rows, out);
  }
  void Add(const float* x, int64_t count, float* y) override { SharedBackend().Add(x, count, y); }
  void RotateQueries(const MlaShape& shape, const RopeTable& rope,
                     absl::Span<const SequenceRows> sequences, float* q) override {
    SharedBackend().RotateQueries(shape, rope, sequences, q);
  }
  void WriteKv(const MlaShape& shape, const RopeTable& rope, const float* norm_weight, float eps,
               absl::Span<const SequenceRows> sequences, const KvLayout& kv,
               const float* kv_a) override {
    SharedBackend().WriteKv(shape, rope, norm_weight, eps, sequences, kv, kv_a);
  }
  void MlaAttention(const MlaShape& shape, const Matrix& kv_b,
                    absl::Span<const SequenceRows> sequences, const KvLayout& kv, const float* q,
                    float* out) override {
    SharedBackend().MlaAttention(shape, kv_b, sequences, kv, q, out);
  }
  void Ffn(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out) override {
    SharedBackend().Ffn(ffn, x, num_rows, out);
  }
  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override {
    SharedBackend().Route(shape, logits, bias, num_rows, expert_ids, weights);
  }
  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    return SharedBackend().RoutedExperts(experts, x, num_rows, expert_ids, weights, k, out);
  }
  void SummarizeLogits(const float* logits, int64_t num_rows, int64_t vocab,
                       const LogitQuestion* questions, LogitSummary* summaries) override {
    SharedBackend().SummarizeLogits(logits, num_rows, vocab, questions, summaries);
  }
};

/// Skips every test of the binary where there is no device, by the driver's words.
class NeedsDevice : public ::testing::Environment {
 public:
  void SetUp() override {
    const absl::Status status = CudaDevice::Open(0).status();
    if (status.ok()) return;
    // Tests that an environment skips count as passed; ctest knows skipped ones by this mark.
    std::cout << "[  SKIPPED ] every test: " << status << std::endl;
    GTEST_SKIP() << status;
  }
};

[[maybe_unused]] const ::testing::Environment* const kNeedsDevice =
    ::testing::AddGlobalTestEnvironment(new NeedsDevice);

}  // namespace

std::vector<TestedKind> TestedKinds() {
  return {{SharedBackend().Name(), [](int) { return std::make_unique<Borrowed>(); }, true}};
}

std::vector<int> TestedThreadCounts() { return {1}; }

// A chunk of 512 columns goes to 16 sums, which are added in 4 levels; then a term for each chunk.
// The value projection adds parts of 32 and then up to 16 of these. And what the CPU's has for a
// weight's scale and the rounding of both results.
double SumDepth(int64_t n) {
  const int64_t chunk_terms = std::min<int64_t>(n, 32);
  return 1.01 * static_cast<double>(1 + chunk_terms + 4 + (n + 511) / 512 +
                                    std::min<int64_t>((n + 31) / 32, 16) + 4);
}

// Tiles of 16 positions in f32; of 32 or 64 on tensor cores.
AttentionRounding AttentionRoundingOf(const MlaShape& shape, DType kv_dtype,
                                      int64_t num_positions) {
  const double n = static_cast<double>(num_positions);
  const bool halves =
      AttendsWithTensorCores(shape, kv_dtype, CudaDevice::Open(0)->compute_capability());
  return {.corrections = n / 16 + n / AttentionSplit(num_positions - 1) + 5, .halves = halves};
}

}  // namespace caravan
