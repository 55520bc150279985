#ifndef CARAVAN_KERNELS_CUDA_LOGIT_SUMMARY_H_
#define CARAVAN_KERNELS_CUDA_LOGIT_SUMMARY_H_

// Backend::SummarizeLogits on the device, in one launch: a thread block a chunk of kLogitChunk
// logits finds the chunk's best and its sums, and the last block of a row to be done puts the
// chunks' together, in their order. Which chunks there are depends on the vocabulary alone, so a
// summary's bits do not depend on the batch.

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/int_math.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/logit_summary.h"

namespace caravan {

inline constexpr int kLogitChunk = 4096;
/// A row has no more: a million logits.
inline constexpr int kMaxLogitChunks = 256;

/// A logit that may be among the best. Its key ascends with its value; 0: there is none.
struct LogitEntry {
  uint32_t key;
  int32_t id;
};

/// Sums of a chunk's weights, below its own largest logit.
struct LogitChunkSums {
  double sum;
  double weight;
  float largest;
};

/// What the summaries of so many rows take beside logits, questions and summaries.
inline int64_t LogitScratchBytes(int64_t max_rows, int64_t max_vocab) {
  const int64_t chunk_bytes = static_cast<int64_t>(sizeof(LogitChunkSums)) +
                              kSummaryCandidates * static_cast<int64_t>(sizeof(LogitEntry));
  return max_rows * (CeilDiv<int64_t>(max_vocab, kLogitChunk) * chunk_bytes +
                     static_cast<int64_t>(sizeof(int32_t)));
}

class CudaLogitSummarizer {
 public:
  /// Takes LogitScratchBytes. Errors: ResourceExhausted - no memory on the device.
  static absl::StatusOr<CudaLogitSummarizer> Create(const CudaStream& stream, int64_t max_rows,
                                                    int64_t max_vocab);

  /// As Backend::SummarizeLogits, every pointer into device memory; queues on the stream, the one
  /// of Create. REQUIRES: num_rows and vocab no more than Create was told, and at most
  /// kMaxLogitChunks chunks. Errors: those of a launch (cuda_error.h).
  absl::Status Run(const CudaStream& stream, const float* logits, int64_t num_rows, int64_t vocab,
                   const LogitQuestion* questions, LogitSummary* summaries) const;

 private:
  CudaLogitSummarizer(DeviceBuffer scratch, int64_t max_rows, int64_t max_vocab)
      : scratch_(std::move(scratch)), max_rows_(max_rows), max_vocab_(max_vocab) {}

  int64_t max_chunks() const { return CeilDiv<int64_t>(max_vocab_, kLogitChunk); }

  // LogitChunkSums, LogitEntry and then, for each row, how many of its chunks are done.
  DeviceBuffer scratch_;
  int64_t max_rows_;
  int64_t max_vocab_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_LOGIT_SUMMARY_H_
