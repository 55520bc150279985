#include "kernels/cuda/logit_summary.h"

#include <cuda_runtime.h>

#include <climits>
#include <cmath>

#include "base/check.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"

namespace caravan {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kItems = kLogitChunk / kThreads;  // a thread
constexpr LogitEntry kNone = {0, -1};

// Item e of lane l of warp w is number 32 (kItems w + e) + l: neighbours read neighbours, and the
// order of items is that of warps, then e, then lanes.
__device__ int ItemOf(int e) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  return 32 * (kItems * warp + e) + static_cast<int>(threadIdx.x) % 32;
}

struct Shared {
  LogitEntry best[kSummaryCandidates];
  uint32_t high[kWarps];
  uint32_t low[kWarps];
  int there[kWarps];
  int counts[2][kWarps];
  int above[kWarps];
  int equal[kWarps];
  double partial[2][kWarps];
  double sums[kMaxLogitChunks];
  double weights[kMaxLogitChunks];
  float largest;
  int drawn_chunk;
  double before_chunk;
  double target;
  int drawn_id;
  bool is_last;
};

/// Ascends with the logit, as the summary has it; never 0.
__device__ uint32_t KeyOf(float logit) {
  if (isnan(logit)) logit = -INFINITY;
  if (logit == 0) logit = 0;  // -0 too
  const uint32_t bits = __float_as_uint(logit);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

__device__ float LogitOf(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

/// How far below the largest, <= 0.
__device__ double Below(float logit, float largest) {
  return logit == largest ? 0 : static_cast<double>(logit) - static_cast<double>(largest);
}

__device__ double WarpTotal(double value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}

__device__ int WarpTotal(int value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(kAllLanes, value, lane);
  return value;
}

__device__ int SumOf(const int (&values)[kWarps]) {
  int sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += values[w];
  return sum;
}

/// The block's kSummaryCandidates best of its threads' items to shared.best, in the items' order
/// (which decides between equal ones), then kNone. Returns the highest key. Uses all of `shared`
/// but what comes after `equal`; all threads call it.
__device__ uint32_t KeepBest(const LogitEntry (&items)[kItems], Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t high = 0;
  uint32_t low = ~0u;
  int there = 0;
#pragma unroll
  for (int e = 0; e < kItems; ++e) {
    if (items[e].key == 0) continue;
    high = max(high, items[e].key);
    low = min(low, items[e].key);
    ++there;
  }
  for (int step = 16; step > 0; step /= 2) {
    high = max(high, __shfl_xor_sync(kAllLanes, high, step));
    low = min(low, __shfl_xor_sync(kAllLanes, low, step));
  }
  there = WarpTotal(there);
  if (lane == 0) {
    shared.high[warp] = high;
    shared.low[warp] = low;
    shared.there[warp] = there;
  }
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) {
    high = max(high, shared.high[w]);
    low = min(low, shared.low[w]);
  }
  there = SumOf(shared.there);

  // The highest key that so many reach, bit by bit from the first in which keys differ; any that
  // exactly so many reach will do as well.
  uint32_t threshold = 0;
  if (there > kSummaryCandidates) {
    const int bits = 32 - __clz(static_cast<int>(high ^ low));
    threshold = bits == 32 ? 0 : high >> bits << bits;
    for (int bit = bits - 1; bit >= 0; --bit) {
      const uint32_t trial = threshold | 1u << bit;
      int count = 0;
#pragma unroll
      for (int e = 0; e < kItems; ++e) count += items[e].key >= trial ? 1 : 0;
      count = WarpTotal(count);
      // Of two that take turns, so that one barrier is enough.
      int(&counts)[kWarps] = shared.counts[bit % 2];
      if (lane == 0) counts[warp] = count;
      __syncthreads();
      count = SumOf(counts);
      if (count >= kSummaryCandidates) threshold = trial;
      if (count == kSummaryCandidates) break;
    }
  }

  // All above it, and of those that equal it the first, as far as there is room.
  int above = 0;
  int equal = 0;
#pragma unroll
  for (int e = 0; e < kItems; ++e) {
    above += __popc(__ballot_sync(kAllLanes, items[e].key > threshold));
    equal += __popc(__ballot_sync(kAllLanes, items[e].key == threshold && threshold != 0));
  }
  if (lane == 0) {
    shared.above[warp] = above;
    shared.equal[warp] = equal;
  }
  __syncthreads();
  int above_before = 0;
  int equal_before = 0;
  for (int w = 0; w < warp; ++w) {
    above_before += shared.above[w];
    equal_before += shared.equal[w];
  }
  const int room = kSummaryCandidates - SumOf(shared.above);
  const unsigned lanes_before = (1u << lane) - 1;
  int at = above_before + min(equal_before, room);
#pragma unroll
  for (int e = 0; e < kItems; ++e) {
    const bool is_equal = items[e].key == threshold && threshold != 0;
    const unsigned equals = __ballot_sync(kAllLanes, is_equal);
    const bool is_kept = items[e].key > threshold ||
                         (is_equal && equal_before + __popc(equals & lanes_before) < room);
    const unsigned kept = __ballot_sync(kAllLanes, is_kept);
    if (is_kept) shared.best[at + __popc(kept & lanes_before)] = items[e];
    at += __popc(kept);
    equal_before += __popc(equals);
  }
  const int none = there + static_cast<int>(threadIdx.x);
  if (none < kSummaryCandidates) shared.best[none] = kNone;
  __syncthreads();
  return high;
}

/// Of the row's chunks, whose entries are in the order of ids: the best to shared.best.
__device__ void MergeBest(const LogitEntry* entries, int num_entries, Shared& shared) {
  LogitEntry items[kItems];
  int kept = 0;
  for (int taken = 0; taken < num_entries;) {
    // What was kept comes before what is new, as its ids do.
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      const int item = ItemOf(e);
      const int from = taken + item - kept;
      items[e] = kNone;
      if (item < kept) {
        items[e] = shared.best[item];
      } else if (from < num_entries) {
        // Written by other blocks, just now.
        const int2 entry = __ldcg(reinterpret_cast<const int2*>(entries + from));
        items[e] = {static_cast<uint32_t>(entry.x), entry.y};
      }
    }
    taken += kLogitChunk - kept;
    kept = kSummaryCandidates;
    KeepBest(items, shared);
  }
}

/// shared.best in order of rank to the summary; shared.largest.
__device__ void StoreBest(int vocab, Shared& shared, LogitSummary& summary) {
  const int mine = static_cast<int>(threadIdx.x);
  if (mine < kSummaryCandidates) {
    const LogitEntry entry = shared.best[mine];
    int rank = 0;
    for (int other = 0; other < kSummaryCandidates; ++other) {
      const uint32_t key = shared.best[other].key;
      rank += key > entry.key || (key == entry.key && other < mine) ? 1 : 0;
    }
    const float logit = entry.key == 0 ? -INFINITY : LogitOf(entry.key);
    summary.logits[rank] = logit;
    summary.ids[rank] = entry.id;
    if (rank == 0) {
      shared.largest = logit;
      summary.vocab_size = vocab;
    }
  }
  __syncthreads();
}

/// The sums over the row to the summary; the chunk that the draw falls into.
__device__ void StoreSums(const LogitChunkSums* chunks, int num_chunks,
                          const LogitQuestion& question, Shared& shared, LogitSummary& summary) {
  const double inverse = 1 / static_cast<double>(question.temperature);
  for (int c = static_cast<int>(threadIdx.x); c < num_chunks; c += kThreads) {
    const double below = Below(__ldcg(&chunks[c].largest), shared.largest);
    shared.sums[c] = __ldcg(&chunks[c].sum) * exp(below);
    shared.weights[c] = __ldcg(&chunks[c].weight) * exp(below * inverse);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    double weight = 0;
    for (int c = 0; c < num_chunks; ++c) {
      sum += shared.sums[c];
      weight += shared.weights[c];
    }
    summary.sum = sum;
    summary.weight = weight;
    const double target = question.quantile * weight;
    double before = 0;
    int c = 0;
    while (c + 1 < num_chunks && before + shared.weights[c] <= target) {
      before += shared.weights[c++];
    }
    shared.target = target;
    shared.before_chunk = before;
    shared.drawn_chunk = c;
    shared.drawn_id = INT_MAX;
  }
  __syncthreads();
}

/// The token at which the running sum passes the target, within its chunk, to the summary.
__device__ void StoreDrawn(const float* logits, int vocab, const LogitQuestion& question,
                           Shared& shared, LogitSummary& summary) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = shared.drawn_chunk * kLogitChunk;
  const double inverse = 1 / static_cast<double>(question.temperature);
  const double target = shared.target;
  const auto weight_of = [&](int id) {
    if (id >= vocab) return 0.0;
    return exp(Below(LogitOf(KeyOf(logits[id])), shared.largest) * inverse);
  };
  double total = 0;
#pragma unroll 4
  for (int e = 0; e < kItems; ++e) total += weight_of(first + ItemOf(e));
  total = WarpTotal(total);
  if (lane == 0) shared.partial[0][warp] = total;
  __syncthreads();
  double before_items = shared.before_chunk;
  for (int w = 0; w < warp; ++w) before_items += shared.partial[0][w];

  int drawn_id = -1;
  double before = 0;
  double through = 0;
  if (before_items <= target && target < before_items + total) {
#pragma unroll 1
    for (int e = 0; e < kItems; ++e) {
      const double weight = weight_of(first + ItemOf(e));
      double up_to = weight;
      for (int step = 1; step < 32; step *= 2) {
        const double other = __shfl_up_sync(kAllLanes, up_to, step);
        if (lane >= step) up_to += other;
      }
      const double end = before_items + up_to;
      if (drawn_id < 0 && end - weight <= target && target < end) {
        drawn_id = first + ItemOf(e);
        before = end - weight;
        through = end;
        atomicMin(&shared.drawn_id, drawn_id);
      }
      before_items += __shfl_sync(kAllLanes, up_to, 31);
    }
  }
  __syncthreads();
  if (drawn_id >= 0 && drawn_id == shared.drawn_id) {
    summary.drawn_id = drawn_id;
    summary.drawn_logit = LogitOf(KeyOf(logits[drawn_id]));
    summary.before_drawn = before;
    summary.through_drawn = through;
  }
}

// summaries[t] = what questions[t] asks of logits[t] [vocab]. Grid [num_rows * num_chunks], the
// chunks of a row side by side, block kThreads, 6 KiB of shared memory. done [num_rows] is 0 before
// and after. Bytes: 4 a logit, 1 KiB a chunk twice; 32 comparisons a logit at most, and an
// exponential in double (two, where the temperature is not 1).
__global__ void __launch_bounds__(kThreads, 4)
    SummarizeLogitsKernel(const float* logits, int vocab, int num_chunks,
                          const LogitQuestion* questions, LogitChunkSums* chunk_sums,
                          LogitEntry* chunk_best, int32_t* done, LogitSummary* summaries) {
  __shared__ Shared shared;
  LetNextBegin();
  WaitForEarlier();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = blockIdx.x / num_chunks;
  const int chunk = static_cast<int>(blockIdx.x % num_chunks);
  const LogitQuestion question = questions[row];
  logits += row * vocab;
  chunk_sums += row * num_chunks;
  chunk_best += row * num_chunks * kSummaryCandidates;

  {
    LogitEntry items[kItems];
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      const int id = chunk * kLogitChunk + ItemOf(e);
      items[e] = {id < vocab ? KeyOf(logits[id]) : 0, id};
    }
    const float largest = LogitOf(KeepBest(items, shared));
    const double inverse = 1 / static_cast<double>(question.temperature);
    double sum = 0;
    double weight = 0;
#pragma unroll
    for (int e = 0; e < kItems; ++e) {
      if (items[e].key == 0) continue;
      const double below = Below(LogitOf(items[e].key), largest);
      sum += exp(below);
      if (question.temperature != 1) weight += exp(below * inverse);
    }
    sum = WarpTotal(sum);
    weight = WarpTotal(weight);
    if (lane == 0) {
      shared.partial[0][warp] = sum;
      shared.partial[1][warp] = weight;
    }
    if (threadIdx.x == 0) shared.largest = largest;
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kSummaryCandidates) {
    chunk_best[chunk * kSummaryCandidates + thread] = shared.best[thread];
  }
  if (thread == 0) {
    double sum = 0;
    double weight = 0;
    for (int w = 0; w < kWarps; ++w) {
      sum += shared.partial[0][w];
      weight += shared.partial[1][w];
    }
    chunk_sums[chunk] = {sum, question.temperature != 1 ? weight : sum, shared.largest};
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    shared.is_last = atomicAdd(&done[row], 1) == num_chunks - 1;
    if (shared.is_last) done[row] = 0;
  }
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();

  LogitSummary& summary = summaries[row];
  if (thread == 0) {
    summary.token_logit =
        question.token_id >= 0 ? LogitOf(KeyOf(logits[question.token_id])) : -INFINITY;
    summary.drawn_id = -1;
    summary.drawn_logit = -INFINITY;
    summary.before_drawn = 0;
    summary.through_drawn = 0;
  }
  MergeBest(chunk_best, num_chunks * kSummaryCandidates, shared);
  StoreBest(vocab, shared, summary);
  StoreSums(chunk_sums, num_chunks, question, shared, summary);
  if (question.quantile >= 0) StoreDrawn(logits, vocab, question, shared, summary);
}

}  // namespace

absl::StatusOr<CudaLogitSummarizer> CudaLogitSummarizer::Create(const CudaStream& stream,
                                                                int64_t max_rows,
                                                                int64_t max_vocab) {
  CARAVAN_ASSIGN_OR_RETURN(
      DeviceBuffer scratch,
      DeviceBuffer::Create(stream.device(), LogitScratchBytes(max_rows, max_vocab)));
  if (scratch.bytes() > 0) {
    CARAVAN_CUDA_RETURN_IF_ERROR(
        cudaMemsetAsync(scratch.data(), 0, static_cast<size_t>(scratch.bytes()), stream.get()));
  }
  return CudaLogitSummarizer(std::move(scratch), max_rows, max_vocab);
}

absl::Status CudaLogitSummarizer::Run(const CudaStream& stream, const float* logits,
                                      int64_t num_rows, int64_t vocab,
                                      const LogitQuestion* questions,
                                      LogitSummary* summaries) const {
  CARAVAN_CHECK(num_rows >= 0 && num_rows <= max_rows_ && vocab > 0 && vocab <= max_vocab_);
  const int64_t num_chunks = CeilDiv<int64_t>(vocab, kLogitChunk);
  CARAVAN_CHECK(num_chunks <= kMaxLogitChunks);
  if (num_rows == 0) return absl::OkStatus();
  auto* const sums = scratch_.as<LogitChunkSums>();
  auto* const best = reinterpret_cast<LogitEntry*>(sums + max_rows_ * max_chunks());
  auto* const done =
      reinterpret_cast<int32_t*>(best + max_rows_ * max_chunks() * kSummaryCandidates);
  return LaunchOverlapped(stream, "SummarizeLogitsKernel", SummarizeLogitsKernel,
                          static_cast<unsigned>(num_rows * num_chunks), kThreads, 0, logits,
                          static_cast<int>(vocab), static_cast<int>(num_chunks), questions, sums,
                          best, done, summaries);
}

}  // namespace caravan
