#include "kernels/cuda/sequence_table.h"

#include <cuda_runtime_api.h>

#include <limits>

#include "base/check.h"
#include "kernels/cuda/cuda_error.h"

namespace caravan {
namespace {

/// From memory that is not pinned, so the call is over when the driver has its own copy.
template <typename T>
absl::Status QueueCopy(const CudaStream& stream, const std::vector<T>& from,
                       const DeviceBuffer& to) {
  if (from.empty()) return absl::OkStatus();
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(to.data(), from.data(), from.size() * sizeof(T),
                                               cudaMemcpyHostToDevice, stream.get()));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SequenceTable> SequenceTable::Create(const CudaDevice& device, int64_t max_rows,
                                                    int64_t max_kv_blocks) {
  SequenceTable table;
  table.max_rows_ = max_rows;
  table.max_kv_blocks_ = max_kv_blocks;
  table.places_.reserve(max_rows);
  table.blocks_.reserve(max_kv_blocks);
  CARAVAN_ASSIGN_OR_RETURN(
      table.device_places_,
      DeviceBuffer::Create(device, max_rows * static_cast<int64_t>(sizeof(RowPlace))));
  CARAVAN_ASSIGN_OR_RETURN(
      table.device_blocks_,
      DeviceBuffer::Create(device, max_kv_blocks * static_cast<int64_t>(sizeof(std::byte*))));
  return table;
}

SequenceRowsView SequenceTable::ViewAt(int64_t block_offset) const {
  return {device_places_.as<RowPlace>(), static_cast<int64_t>(places_.size()),
          device_blocks_.as<std::byte*>(), block_offset};
}

std::optional<SequenceRowsView> SequenceTable::Find(
    absl::Span<const SequenceRows> sequences) const {
  size_t row = 0, block = 0;
  std::optional<int64_t> offset;
  for (const SequenceRows& sequence : sequences) {
    if (sequence.num_rows > static_cast<int64_t>(places_.size() - row)) return std::nullopt;
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      const RowPlace& place = places_[row++];
      if (place.row != sequence.first_row + i || place.position != sequence.first_position + i ||
          place.first_block != static_cast<int64_t>(block)) {
        return std::nullopt;
      }
    }
    if (sequence.kv_blocks.size() > blocks_.size() - block) return std::nullopt;
    for (std::byte* const at : sequence.kv_blocks) {
      const int64_t distance = at - blocks_[block++];
      if (offset.value_or(distance) != distance) return std::nullopt;
      offset = distance;
    }
  }
  if (row != places_.size() || block != blocks_.size()) return std::nullopt;
  return ViewAt(offset.value_or(0));
}

absl::StatusOr<SequenceRowsView> SequenceTable::Upload(const CudaStream& stream,
                                                       absl::Span<const SequenceRows> sequences) {
  if (const std::optional<SequenceRowsView> found = Find(sequences);
      found.has_value() && found->block_offset == 0) {
    return *found;
  }
  places_.clear();
  blocks_.clear();
  for (const SequenceRows& sequence : sequences) {
    CARAVAN_CHECK(sequence.first_position + sequence.num_rows <=
                  std::numeric_limits<int32_t>::max());
    for (int64_t i = 0; i < sequence.num_rows; ++i) {
      places_.push_back({static_cast<int32_t>(sequence.first_row + i),
                         static_cast<int32_t>(sequence.first_position + i),
                         static_cast<int32_t>(blocks_.size())});
    }
    blocks_.insert(blocks_.end(), sequence.kv_blocks.begin(), sequence.kv_blocks.end());
  }
  CARAVAN_CHECK(static_cast<int64_t>(places_.size()) <= max_rows_);
  CARAVAN_CHECK(static_cast<int64_t>(blocks_.size()) <= max_kv_blocks_);
  CARAVAN_RETURN_IF_ERROR(QueueCopy(stream, places_, device_places_));
  CARAVAN_RETURN_IF_ERROR(QueueCopy(stream, blocks_, device_blocks_));
  return ViewAt(0);
}

}  // namespace caravan
