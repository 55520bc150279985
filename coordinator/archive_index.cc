#include "coordinator/archive_index.h"

#include <algorithm>
#include <iterator>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "base/check.h"

namespace caravan {
namespace {

// Of the capacity, what is left to stages that forget a little sooner.
constexpr int64_t kSlack = 8;

constexpr int kMostClears = 3;

// What is looked for in archives, however large they are: what the index takes a few hundred MB
// for.
constexpr uint64_t kMostArchivedBlocks = 1 << 20;

/// What the index has of a capacity.
int64_t WithoutSlack(int64_t capacity) { return capacity - capacity / kSlack; }

}  // namespace

int64_t ArchiveCapacity(const v1::KvArchive& archive) {
  return static_cast<int64_t>(std::min<uint64_t>(archive.capacity(), kMostArchivedBlocks));
}

ArchiveContents ArchiveFromProto(const v1::KvArchive& archive) {
  ArchiveContents contents;
  contents.capacity = ArchiveCapacity(archive);
  absl::string_view names = archive.names();
  while (!names.empty() && contents.names.size() < kMostArchivedNames) {
    const std::optional<KvBlockName> name =
        KvBlockNameFromWire(names.substr(0, KvBlockName::kBytes));
    if (name.has_value()) contents.names.push_back(*name);
    names.remove_prefix(std::min(names.size(), KvBlockName::kBytes));
  }
  return contents;
}

ArchiveIndex::ArchiveIndex(const ArchiveContents& contents)
    : root_(contents.root), capacity_(WithoutSlack(contents.capacity)) {
  if (!active()) return;
  for (const KvBlockName& name : contents.names) Use(name);
}

void ArchiveIndex::Use(const KvBlockName& name) {
  const auto found = by_name_.find(name);
  if (found != by_name_.end()) {
    names_.splice(names_.end(), names_, found->second);
    return;
  }
  by_name_[name] = names_.insert(names_.end(), name);
  Shrink();
}

void ArchiveIndex::SetCapacity(int64_t capacity) {
  CARAVAN_CHECK(capacity > 0);
  if (!active()) return;
  capacity_ = WithoutSlack(capacity);
  Shrink();
}

void ArchiveIndex::Shrink() {
  while (size() > capacity_) {
    by_name_.erase(names_.front());
    names_.pop_front();
  }
}

void ArchiveIndex::Clear() {
  names_.clear();
  by_name_.clear();
  if (++clears_ == kMostClears) capacity_ = 0;
}

ArchiveContents CommonArchive(const KvBlockName& root, const std::vector<ArchiveContents>& stages) {
  ArchiveContents common;
  common.root = root;
  if (stages.empty()) return common;
  common.capacity = stages.front().capacity;
  common.names = stages.front().names;
  for (auto stage = std::next(stages.begin()); stage != stages.end(); ++stage) {
    common.capacity = std::min(common.capacity, stage->capacity);
    const absl::flat_hash_set<KvBlockName> there(stage->names.begin(), stage->names.end());
    std::erase_if(common.names, [&](const KvBlockName& name) { return !there.contains(name); });
  }
  if (common.capacity == 0) common.names.clear();
  return common;
}

}  // namespace caravan
