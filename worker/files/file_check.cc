#include "worker/files/file_check.h"

#include <algorithm>
#include <cstddef>

#include "absl/types/span.h"
#include "base/status_macros.h"
#include "model/pack/file_hash.h"

namespace caravan {
namespace {

constexpr int64_t kReadBytes = int64_t{1} << 20;

}  // namespace

absl::StatusOr<FileCheck> CheckFile(const PartialFile& file, const PackedFile& packed,
                                    absl::FunctionRef<bool(int64_t bytes)> on_read) {
  FileCheck found;
  std::vector<std::byte> buffer(static_cast<size_t>(kReadBytes));
  FileHash whole;
  int64_t at = 0;
  const auto read_to = [&](int64_t end, FileHash* part) -> absl::Status {
    while (at < end) {
      const auto bytes =
          absl::MakeSpan(buffer).first(static_cast<size_t>(std::min(kReadBytes, end - at)));
      CARAVAN_RETURN_IF_ERROR(file.Read(at, bytes));
      whole.Add(bytes);
      if (part != nullptr) part->Add(bytes);
      at += static_cast<int64_t>(bytes.size());
      if (!on_read(static_cast<int64_t>(bytes.size()))) {
        return absl::CancelledError("reading a file back was stopped");
      }
    }
    return absl::OkStatus();
  };
  if (packed.experts.has_value()) {
    const PackedExperts& experts = *packed.experts;
    CARAVAN_RETURN_IF_ERROR(read_to(experts.offset, nullptr));
    for (int64_t e = 0; e < experts.count; ++e) {
      FileHash part;
      CARAVAN_RETURN_IF_ERROR(read_to(at + experts.stride, &part));
      if (part.Digest() != experts.hashes[static_cast<size_t>(e)]) found.bad_experts.push_back(e);
    }
  }
  CARAVAN_RETURN_IF_ERROR(read_to(packed.bytes, nullptr));
  found.is_right = whole.Digest() == packed.hash;
  return found;
}

}  // namespace caravan
