#include "kernels/cpu/memory_read.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>

#include "base/check.h"

namespace caravan {
namespace {

constexpr int64_t kLineBytes = 64;
// Of a range that a thread takes at a time: large beside the cost of taking one.
constexpr int64_t kGrainLines = 1 << 12;
// How far ahead lines are asked for, in words of 8 bytes; without that a tenth slower.
constexpr int64_t kAhead = 512;

/// words [8 * lines]. Sums, so that every word counts.
uint64_t ReadLines(const uint64_t* words, int64_t lines) {
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < 8 * lines; i += 8) {
    __builtin_prefetch(words + i + kAhead);
    for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
  }
  uint64_t sum = 0;
  for (const uint64_t lane : sums) sum += lane;
  return sum;
}

#if defined(__x86_64__)
/// The same, in half as many instructions as without AVX2: what a core may have under way at once
/// is then lines rather than instructions.
__attribute__((target("avx2"))) uint64_t ReadLinesAvx2(const uint64_t* words, int64_t lines) {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  for (int64_t i = 0; i < 8 * lines; i += 8) {
    __builtin_prefetch(words + i + kAhead);
    const auto* const line = reinterpret_cast<const __m256i*>(words + i);
    low = _mm256_add_epi64(low, _mm256_loadu_si256(line));
    high = _mm256_add_epi64(high, _mm256_loadu_si256(line + 1));
  }
  alignas(32) uint64_t sums[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(sums), _mm256_add_epi64(low, high));
  return sums[0] + sums[1] + sums[2] + sums[3];
}
#endif

uint64_t (*BestReadLines())(const uint64_t*, int64_t) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") != 0) return ReadLinesAvx2;
#endif
  return ReadLines;
}

}  // namespace

uint64_t ReadMemory(ThreadPool& pool, const std::byte* data, int64_t bytes) {
  CARAVAN_CHECK(bytes % kLineBytes == 0);
  static const auto read_lines = BestReadLines();
  const auto* const words = reinterpret_cast<const uint64_t*>(data);
  std::atomic<uint64_t> sum{0};
  pool.ParallelFor(bytes / kLineBytes, kGrainLines, [&](int64_t begin, int64_t end) {
    sum.fetch_add(read_lines(words + 8 * begin, end - begin), std::memory_order_relaxed);
  });
  return sum.load();
}

}  // namespace caravan
