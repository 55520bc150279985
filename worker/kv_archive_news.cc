#include "worker/kv_archive_news.h"

#include <algorithm>
#include <cstdint>

namespace caravan {
namespace {

/// Whether the two are an eighth of the larger apart.
bool Differ(uint64_t a, uint64_t b) {
  const uint64_t larger = std::max(a, b);
  return larger - std::min(a, b) >= std::max<uint64_t>(1, larger / 8);
}

}  // namespace

bool IsWorthTelling(const v1::KvArchiveNews& told, const v1::KvArchiveNews& now) {
  if (Differ(told.room_bytes(), now.room_bytes())) return true;
  if (now.plan_version() == 0) return false;
  return now.plan_version() != told.plan_version() || now.refused_by() != told.refused_by() ||
         now.capacity() < told.capacity() || Differ(told.capacity(), now.capacity());
}

}  // namespace caravan
