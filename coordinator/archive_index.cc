#include "coordinator/archive_index.h"

#include <algorithm>
#include <iterator>

#include "absl/container/flat_hash_set.h"

namespace caravan {

ArchiveIndex::ArchiveIndex(const ArchiveContents& contents)
    : root_(contents.root), capacity_(contents.capacity) {
  if (!active()) return;
  for (const KvBlockName& name : contents.names) Add(name);
}

bool ArchiveIndex::Use(const KvBlockName& name) {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return false;
  names_.splice(names_.end(), names_, found->second);
  return true;
}

bool ArchiveIndex::Add(const KvBlockName& name) {
  if (Use(name)) return false;
  by_name_[name] = names_.insert(names_.end(), name);
  if (size() > capacity_) {
    by_name_.erase(names_.front());
    names_.pop_front();
  }
  return true;
}

void ArchiveIndex::Clear() {
  names_.clear();
  by_name_.clear();
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
