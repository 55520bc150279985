#include "model/mapped_tensors.h"

#include "base/check.h"
#include "base/sorted_keys.h"

namespace caravan {

std::vector<std::string> MappedTensors::TensorNames() const { return SortedKeys(tensors_); }

bool MappedTensors::Add(std::string name, TensorInfo info, int64_t offset, int64_t num_bytes) {
  return tensors_.emplace(std::move(name), Entry{std::move(info), offset, num_bytes}).second;
}

const MappedTensors::Entry& MappedTensors::At(absl::string_view name) const {
  const auto it = tensors_.find(name);
  CARAVAN_CHECK(it != tensors_.end());
  return it->second;
}

const TensorInfo* MappedTensors::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second.info;
}

absl::Status MappedTensors::ReadPart(absl::string_view name, int64_t offset,
                                     absl::Span<std::byte> out) const {
  const absl::Span<const std::byte> bytes = Bytes(name);
  CARAVAN_CHECK(offset >= 0 && static_cast<size_t>(offset) <= bytes.size());
  CARAVAN_CHECK(out.size() <= bytes.size() - static_cast<size_t>(offset));
  // Not out of the mapping: that takes a fault for every few pages, and all threads wait for one to
  // let go of them again.
  return file_->file().Read(Offset(name) + offset, out);
}

void MappedTensors::Prefetch(absl::string_view name, int64_t offset, int64_t size) const {
  file_->file().Prefetch(Offset(name) + offset, size);
}

absl::Span<const std::byte> MappedTensors::Bytes(absl::string_view name) const {
  const Entry& entry = At(name);
  return file_->bytes().subspan(static_cast<size_t>(entry.offset),
                                static_cast<size_t>(entry.num_bytes));
}

int64_t MappedTensors::Offset(absl::string_view name) const { return At(name).offset; }

}  // namespace caravan
