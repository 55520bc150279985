// The CPU backend's kernels at DeepSeek-V3's shapes, beside the rate at which the same number of
// threads reads plain memory: the bound of everything that touches each weight once.
//
// gb_per_s counts the bytes of weights and cache that a call must read once; gflop_per_s counts two
// operations for each multiply-add of the algorithm (decoding not counted).
//
// Products of tiled matrices are timed in turns with reads of as many bytes of plain memory, so
// that what else the machine does falls on both: share_of_read is the median ratio of their times.
//
//   kernels_bench --benchmark_filter='Tiled.*/threads:2'

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/thread_pool.h"
#include "benchmark/benchmark.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/memory_read.h"

namespace caravan {
namespace {

// Larger than any cache, so that weights come from memory as they do in a whole model.
constexpr int64_t kWorkingSetBytes = int64_t{1} << 30;

/// Random bits of working-set size, shared by all benchmarks.
const std::vector<std::byte>& WorkingSet() {
  static const auto* bytes = [] {
    auto* words = new std::vector<std::byte>(kWorkingSetBytes);
    std::mt19937_64 rng(1);
    for (int64_t i = 0; i < kWorkingSetBytes; i += 8) {
      // Read as f32, bf16 or f8, positive and from 2^-31 to 2: no NaN, and nothing subnormal, which
      // many CPUs multiply far more slowly.
      const uint64_t word = (rng() & 0x3f3f3f3f3f3f3f3f) | 0x3030303030303030;
      std::memcpy(words->data() + i, &word, 8);
    }
    return words;
  }();
  return *bytes;
}

/// Matrices over WorkingSet, one after another, so that none is in a cache when its turn comes.
class MatrixRing {
 public:
  MatrixRing(DType dtype, int64_t rows, int64_t cols, MatrixLayout layout = MatrixLayout::kRowMajor)
      : matrix_{.dtype = dtype, .rows = rows, .cols = cols, .layout = layout} {
    WorkingSet();  // filled now, not while the first benchmark is timed
    scales_.assign(Fp8Blocks(rows) * Fp8Blocks(cols), 0.01f);
    if (dtype == DType::kF8E4M3) matrix_.scale_inv = scales_.data();
  }

  int64_t bytes() const { return DTypeBytes(matrix_.dtype, matrix_.rows * matrix_.cols); }
  Matrix Next() {
    const int64_t size = (bytes() + 63) / 64 * 64;
    CARAVAN_CHECK(size <= kWorkingSetBytes);
    if (at_ + size > kWorkingSetBytes) at_ = 0;
    matrix_.data = WorkingSet().data() + at_;
    at_ += size;
    return matrix_;
  }

 private:
  std::vector<float> scales_;
  Matrix matrix_;
  int64_t at_ = 0;
};

std::vector<float> Activations(int64_t count) {
  std::mt19937_64 rng(2);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(rng);
  return values;
}

std::unique_ptr<Backend> BackendOf(int64_t num_threads) {
  return *MakeCpuBackend({.num_threads = static_cast<int>(num_threads)});
}

void Report(benchmark::State& state, double bytes, double multiply_adds) {
  using benchmark::Counter;
  state.counters["gb_per_s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
  if (multiply_adds > 0) {
    state.counters["gflop_per_s"] =
        Counter(2e-9 * multiply_adds, Counter::kIsIterationInvariantRate);
  }
}

void PlainRead(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(ReadMemory(pool, WorkingSet().data(), kWorkingSetBytes));
  }
  Report(state, static_cast<double>(kWorkingSetBytes), 0);
}
BENCHMARK(PlainRead)->Name("ReadMemory")->ArgNames({"threads"})->Arg(1)->Arg(2)->UseRealTime();

/// One expert's gate or up: [2048, 7168].
void MatMul(benchmark::State& state, DType dtype) {
  const int64_t num_rows = state.range(0);
  const std::unique_ptr<Backend> backend = BackendOf(state.range(1));
  MatrixRing ring(dtype, 2048, 7168);
  const std::vector<float> x = Activations(num_rows * 7168);
  std::vector<float> out(num_rows * 2048);
  for (auto _ : state) backend->MatMul(ring.Next(), x.data(), num_rows, out.data());
  Report(state, static_cast<double>(ring.bytes()), 2048.0 * 7168 * static_cast<double>(num_rows));
}
BENCHMARK_CAPTURE(MatMul, f8, DType::kF8E4M3)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{1, 16, 128}, {1, 2}})
    ->UseRealTime();
BENCHMARK_CAPTURE(MatMul, bf16, DType::kBF16)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{1, 16, 128}, {1, 2}})
    ->UseRealTime();
BENCHMARK_CAPTURE(MatMul, f32, DType::kF32)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{1, 16, 128}, {1, 2}})
    ->UseRealTime();

// --- attention -----------------------------------------------------------------------------------

#if defined(__x86_64__)
/// Fused multiply-adds between registers, in as many chains as hide their latency. Returns what
/// keeps the compiler from leaving them out.
__attribute__((target("avx512f"))) float MultiplyAdd512(int64_t rounds) {
  __m512 sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int64_t round = 0; round < rounds; ++round) {
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, a, b);
  }
  for (int i = 1; i < 16; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return _mm512_cvtss_f32(sums[0]);
}

/// The bound of products: what the cores' units of 512 bits do, or nothing where there are none.
void FusedMultiplyAdds(benchmark::State& state) {
  constexpr int64_t kRounds = 1 << 20;
  if (__builtin_cpu_supports("avx512f") == 0) {
    state.SkipWithError("no AVX-512");
    return;
  }
  ThreadPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    pool.ParallelFor(state.range(0), 1,
                     [](int64_t, int64_t) { benchmark::DoNotOptimize(MultiplyAdd512(kRounds)); });
  }
  Report(state, 0, static_cast<double>(kRounds * 16 * 16 * state.range(0)));
}
BENCHMARK(FusedMultiplyAdds)->ArgNames({"threads"})->Arg(1)->Arg(2)->UseRealTime();
#endif

/// One row each of `rows` sequences of `context` tokens (decode), or the last rows of one
/// (prefill). Caches come from the working set, as kv_b does: a model's other layers lie between
/// two calls for one.
void MlaAttention(benchmark::State& state, int64_t num_heads, DType kv_dtype, bool is_prefill) {
  const int64_t context = state.range(0);
  const int64_t num_rows = state.range(1);
  const MlaShape shape = {.num_heads = num_heads,
                          .qk_nope_head_dim = 128,
                          .qk_rope_head_dim = 64,
                          .v_head_dim = 128,
                          .kv_lora_rank = 512,
                          .softmax_scale = 0.001f};
  constexpr int64_t kBlockTokens = 64;
  const std::unique_ptr<Backend> backend = BackendOf(state.range(2));
  MatrixRing ring(DType::kF8E4M3, num_heads * 256, 512);
  MatrixRing caches(kv_dtype, context, shape.kv_width());
  const int64_t num_sequences = is_prefill ? 1 : num_rows;
  const int64_t rows_each = num_rows / num_sequences;
  const int64_t block_bytes = DTypeBytes(kv_dtype, kBlockTokens * shape.kv_width());
  const int64_t blocks_each = context / kBlockTokens;
  std::vector<std::byte*> blocks(num_sequences * blocks_each);
  std::vector<SequenceRows> sequences;
  for (int64_t s = 0; s < num_sequences; ++s) {
    sequences.push_back({s * rows_each, rows_each, context - rows_each,
                         absl::MakeConstSpan(blocks).subspan(s * blocks_each, blocks_each)});
  }
  const std::vector<float> q = Activations(num_rows * num_heads * shape.q_head_dim());
  std::vector<float> out(num_rows * num_heads * shape.v_head_dim);
  const auto attend = [&] {
    for (int64_t s = 0; s < num_sequences; ++s) {
      // Only read.
      auto* const cache = const_cast<std::byte*>(caches.Next().data);
      for (int64_t b = 0; b < blocks_each; ++b)
        blocks[s * blocks_each + b] = cache + b * block_bytes;
    }
    backend->MlaAttention(shape, ring.Next(), sequences, {kv_dtype, kBlockTokens}, q.data(),
                          out.data());
  };
  attend();  // threads started, scratch grown
  for (auto _ : state) attend();
  const double scored = static_cast<double>(num_heads * num_rows) *
                        (static_cast<double>(context) - static_cast<double>(rows_each - 1) / 2);
  Report(state, static_cast<double>(ring.bytes() + num_sequences * caches.bytes()),
         scored * (576 + 512) + static_cast<double>(num_rows * num_heads) * 256 * 512);
}

/// Rows of one sequence of R1, from position 0.
void WriteKv(benchmark::State& state, DType kv_dtype) {
  const int64_t num_rows = state.range(0);
  const MlaShape shape = {.qk_rope_head_dim = 64, .kv_lora_rank = 512};
  const std::unique_ptr<Backend> backend = BackendOf(state.range(1));
  const std::vector<float> norm(512, 1), inv_freq(32, 0.01f);
  const std::vector<float> kv_a = Activations(num_rows * shape.kv_width());
  std::vector<std::byte> cache(DTypeBytes(kv_dtype, num_rows * shape.kv_width()));
  std::byte* const block = cache.data();
  const SequenceRows sequence = {0, num_rows, 0, absl::MakeConstSpan(&block, 1)};
  for (auto _ : state) {
    backend->WriteKv(shape, {inv_freq, 1}, norm.data(), 1e-6f, absl::MakeConstSpan(&sequence, 1),
                     {kv_dtype, num_rows}, kv_a.data());
  }
  Report(state, static_cast<double>(cache.size()), 0);
}

void RegisterAttention() {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0}) {
    const std::string name = absl::StrCat("WriteKv/", DTypeName(dtype));
    benchmark::RegisterBenchmark(name.c_str(), WriteKv, dtype)
        ->ArgNames({"rows", "threads"})
        ->ArgsProduct({{1, 512}, {1, 2}})
        ->UseRealTime();
  }
  for (const int64_t num_heads : {128, 16}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0}) {
      for (const bool is_prefill : {false, true}) {
        const std::string name = absl::StrCat("MlaAttention/", is_prefill ? "prefill" : "decode",
                                              "/heads:", num_heads, "/", DTypeName(dtype));
        benchmark::RegisterBenchmark(name.c_str(), MlaAttention, num_heads, dtype, is_prefill)
            ->ArgNames({"context", "rows", "threads"})
            ->ArgsProduct({{512, 4096},
                           is_prefill ? std::vector<int64_t>{512} : std::vector<int64_t>{1, 16},
                           {1, 2}})
            ->UseRealTime();
      }
    }
  }
}

void RunExperts(Backend& backend, const std::vector<FfnWeights>& experts, const float* x,
                int64_t num_rows, const std::vector<int32_t>& ids, const float* weights, int64_t k,
                float* out) {
  ResidentExperts resident(experts, ids);
  CARAVAN_CHECK(backend.RoutedExperts(resident, x, num_rows, ids.data(), weights, k, out).ok());
}

/// 64 experts of [512, 2048] in FP8, 8 a row: row t takes every eighth from t % 8 on.
void RoutedExperts(benchmark::State& state) {
  constexpr int64_t kHidden = 2048, kInter = 512, kExperts = 64, kChosen = 8;
  const int64_t num_rows = state.range(0);
  const std::unique_ptr<Backend> backend = BackendOf(state.range(1));
  MatrixRing in_ring(DType::kF8E4M3, kInter, kHidden), out_ring(DType::kF8E4M3, kHidden, kInter);
  std::vector<FfnWeights> experts;
  for (int64_t e = 0; e < kExperts; ++e) {
    experts.push_back({in_ring.Next(), in_ring.Next(), out_ring.Next()});
  }
  const std::vector<float> x = Activations(num_rows * kHidden);
  const std::vector<float> weights(num_rows * kChosen, 0.125f);
  std::vector<float> out(num_rows * kHidden);
  std::vector<int32_t> ids(num_rows * kChosen);
  int64_t turn = 0;
  for (auto _ : state) {
    for (size_t i = 0; i < ids.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / kChosen + turn;
      ids[i] = static_cast<int32_t>(static_cast<int64_t>(i) % kChosen * 8 + row % 8);
    }
    ++turn;
    RunExperts(*backend, experts, x.data(), num_rows, ids, weights.data(), kChosen, out.data());
  }
  const double expert_weights = 3.0 * kHidden * kInter;
  const double touched = static_cast<double>(std::min(num_rows, int64_t{8}) * kChosen);
  Report(state, touched * expert_weights, static_cast<double>(num_rows * kChosen) * expert_weights);
}
BENCHMARK(RoutedExperts)
    ->ArgNames({"rows", "threads"})
    ->ArgsProduct({{1, 64}, {1, 2}})
    ->UseRealTime();

// --- tiled weights -------------------------------------------------------------------------------

double SecondsOf(absl::FunctionRef<void()> body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Times `body`, which touches `bytes` of weights, in turns with reads of as many, or of the whole
/// working set if that is less.
void TimeBesideReads(benchmark::State& state, int64_t num_threads, int64_t bytes,
                     double multiply_adds, absl::FunctionRef<void()> body) {
  ThreadPool pool(static_cast<int>(num_threads));
  const int64_t read_bytes = std::min(bytes, kWorkingSetBytes);
  const double reads = static_cast<double>(bytes) / static_cast<double>(read_bytes);
  std::vector<double> shares;
  int64_t read_at = kWorkingSetBytes / 2;
  body();  // threads started, scratch grown
  for (auto _ : state) {
    const double seconds = SecondsOf(body);
    state.SetIterationTime(seconds);
    if (read_at + read_bytes > kWorkingSetBytes) read_at = 0;
    shares.push_back(reads * SecondsOf([&] {
                       benchmark::DoNotOptimize(
                           ReadMemory(pool, WorkingSet().data() + read_at, read_bytes / 64 * 64));
                     }) /
                     seconds);
    read_at += read_bytes / 64 * 64;
  }
  Report(state, static_cast<double>(bytes), multiply_adds);
  std::nth_element(shares.begin(), shares.begin() + std::ssize(shares) / 2, shares.end());
  state.counters["share_of_read"] = shares[shares.size() / 2];
}

/// [2048, 7168]: one expert's gate or up of R1.
void TiledMatMul(benchmark::State& state, DType dtype) {
  const int64_t num_rows = state.range(0);
  const std::unique_ptr<Backend> backend = BackendOf(state.range(1));
  MatrixRing ring(dtype, 2048, 7168, MatrixLayout::kTiled16);
  const std::vector<float> x = Activations(num_rows * 7168);
  std::vector<float> out(num_rows * 2048);
  TimeBesideReads(state, state.range(1), ring.bytes(),
                  2048.0 * 7168 * static_cast<double>(num_rows),
                  [&] { backend->MatMul(ring.Next(), x.data(), num_rows, out.data()); });
}

/// `chosen` experts that all rows take, of one layer of a model.
void TiledExperts(benchmark::State& state, DType dtype, int64_t hidden, int64_t inter,
                  int64_t chosen) {
  const int64_t num_rows = state.range(0);
  const std::unique_ptr<Backend> backend = BackendOf(state.range(1));
  MatrixRing ring(dtype, inter, hidden, MatrixLayout::kTiled16);
  const std::vector<float> x = Activations(num_rows * hidden);
  const std::vector<float> weights(num_rows * chosen, 0.125f);
  std::vector<float> out(num_rows * hidden);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < num_rows * chosen; ++i) ids.push_back(static_cast<int32_t>(i % chosen));
  std::vector<FfnWeights> experts(chosen);
  const auto multiply_adds = static_cast<double>(3 * num_rows * chosen * hidden * inter);
  TimeBesideReads(state, state.range(1), 3 * chosen * ring.bytes(), multiply_adds, [&] {
    for (FfnWeights& expert : experts) {
      // An expert's three matrices follow each other, as in a packed file.
      expert = {ring.Next(), ring.Next(), ring.Next()};
      std::swap(expert.down.rows, expert.down.cols);
    }
    RunExperts(*backend, experts, x.data(), num_rows, ids, weights.data(), chosen, out.data());
  });
}

void RegisterTiled() {
  constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_K, DType::kBF16,  DType::kQ6_K,
                              DType::kQ4_0, DType::kQ5_K, DType::kQ3_K,  DType::kQ2_K,
                              DType::kF16,  DType::kF32,  DType::kF8E4M3};
  for (const DType dtype : kTypes) {
    const std::string type(DTypeName(dtype));
    const auto add = [](const std::string& name, auto... arguments) {
      benchmark::RegisterBenchmark(name.c_str(), arguments...)
          ->ArgNames({"rows", "threads"})
          ->ArgsProduct({{1, 4, 16, 512}, {1, 2}})
          ->UseManualTime();
    };
    add("TiledMatMul/" + type, TiledMatMul, dtype);
    // One expert of R1, and what a token of R1 or of model S (8 layers, hidden 2048) chooses.
    add("TiledExperts/R1x1/" + type, TiledExperts, dtype, 7168, 2048, 1);
    add("TiledExperts/R1x8/" + type, TiledExperts, dtype, 7168, 2048, 8);
    add("TiledExperts/Sx6/" + type, TiledExperts, dtype, 2048, 1280, 6);
  }
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::RegisterAttention();
  caravan::RegisterTiled();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
