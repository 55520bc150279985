#include "model/gguf/gguf_set.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/sorted_keys.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

constexpr char kSplitNo[] = "split.no";
constexpr char kSplitCount[] = "split.count";
constexpr char kSplitTensors[] = "split.tensors.count";
constexpr int64_t kMaxSplits = 65535;  // the keys are of 16 bits

/// How the file's name ends. `no`: from 0.
std::string SplitSuffix(int64_t no, int64_t count) {
  return absl::StrFormat("-%05d-of-%05d.gguf", no + 1, count);
}

absl::Status CheckSays(const GgufFile& file, absl::string_view key, int64_t value) {
  CARAVAN_ASSIGN_OR_RETURN(const int64_t said, file.metadata().Int(key, 0, kMaxSplits));
  if (said == value) return absl::OkStatus();
  return file.metadata().Error(
      key, absl::StrCat("is ", said, ", but in the set that the file is named for it is ", value));
}

}  // namespace

bool IsGgufPath(absl::string_view path) { return absl::EndsWith(path, ".gguf"); }

std::vector<std::string> GgufSetPaths(const std::string& path) {
  const size_t suffix_bytes = SplitSuffix(0, 1).size();
  if (path.size() > suffix_bytes) {
    const std::string prefix = path.substr(0, path.size() - suffix_bytes);
    const std::vector<absl::string_view> numbers = absl::StrSplit(
        absl::string_view(path).substr(prefix.size() + 1, suffix_bytes - 1), absl::ByAnyChar("-."));
    int64_t no = 0;
    int64_t count = 0;
    if (numbers.size() == 4 && absl::SimpleAtoi(numbers[0], &no) &&
        absl::SimpleAtoi(numbers[2], &count) && 1 <= no && no <= count && count <= kMaxSplits &&
        path == prefix + SplitSuffix(no - 1, count)) {
      std::vector<std::string> paths;
      for (int64_t i = 0; i < count; ++i) paths.push_back(prefix + SplitSuffix(i, count));
      return paths;
    }
  }
  return {path};
}

absl::StatusOr<std::unique_ptr<GgufSet>> GgufSet::Open(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> given, GgufFile::Open(path));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t count,
                           given->metadata().Int(kSplitCount, 0, kMaxSplits, 1));
  auto set = std::unique_ptr<GgufSet>(new GgufSet());
  if (count <= 1) {
    set->files_.push_back(std::move(given));
  } else {
    CARAVAN_ASSIGN_OR_RETURN(const int64_t given_no, given->metadata().Int(kSplitNo, 0, count - 1));
    const std::string given_suffix = SplitSuffix(given_no, count);
    if (!absl::EndsWith(path, given_suffix)) {
      return given->metadata().Error(
          kSplitNo, absl::StrCat("says that this is file ", given_no + 1, " of ", count,
                                 ", so its name must end in \"", given_suffix,
                                 "\" for the others to be found"));
    }
    const std::string prefix = path.substr(0, path.size() - given_suffix.size());
    for (int64_t no = 0; no < count; ++no) {
      if (no == given_no) {
        set->files_.push_back(std::move(given));
        continue;
      }
      absl::StatusOr<std::unique_ptr<GgufFile>> file =
          GgufFile::Open(prefix + SplitSuffix(no, count));
      if (!file.ok()) {
        return Annotate(file.status(),
                        absl::StrCat("file ", no + 1, " of the ", count, " of this model"));
      }
      CARAVAN_RETURN_IF_ERROR(CheckSays(**file, kSplitCount, count));
      CARAVAN_RETURN_IF_ERROR(CheckSays(**file, kSplitNo, no));
      set->files_.push_back(*std::move(file));
    }
  }
  for (const std::unique_ptr<GgufFile>& file : set->files_) {
    for (std::string& name : file->TensorNames()) {
      const auto [entry, is_new] = set->file_of_.emplace(std::move(name), file.get());
      if (!is_new) {
        return absl::InvalidArgumentError(absl::StrCat(file->path(), ": tensor ", entry->first,
                                                       ": is in ", entry->second->path(), " too"));
      }
    }
  }
  const int64_t num_tensors = static_cast<int64_t>(set->file_of_.size());
  CARAVAN_ASSIGN_OR_RETURN(const int64_t said,
                           set->metadata().Int(kSplitTensors, 0, INT64_MAX, num_tensors));
  if (said != num_tensors) {
    return set->metadata().Error(
        kSplitTensors, absl::StrCat("is ", said, ", but there are ", num_tensors, " tensors"));
  }
  return set;
}

std::vector<std::string> GgufSet::TensorNames() const { return SortedKeys(file_of_); }

const GgufFile* GgufSet::FileOf(absl::string_view name) const {
  const auto it = file_of_.find(name);
  return it == file_of_.end() ? nullptr : it->second;
}

const TensorInfo* GgufSet::Find(absl::string_view name) const {
  const GgufFile* const file = FileOf(name);
  return file == nullptr ? nullptr : file->Find(name);
}

absl::Status GgufSet::ReadPart(absl::string_view name, int64_t offset,
                               absl::Span<std::byte> out) const {
  const GgufFile* const file = FileOf(name);
  CARAVAN_CHECK(file != nullptr);
  return file->ReadPart(name, offset, out);
}

void GgufSet::Prefetch(absl::string_view name, int64_t offset, int64_t size) const {
  const GgufFile* const file = FileOf(name);
  CARAVAN_CHECK(file != nullptr);
  file->Prefetch(name, offset, size);
}

}  // namespace caravan
