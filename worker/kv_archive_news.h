#ifndef CARAVAN_WORKER_KV_ARCHIVE_NEWS_H_
#define CARAVAN_WORKER_KV_ARCHIVE_NEWS_H_

// What of the changes of an archive of KV blocks the coordinator is told. A pure function.

#include "caravan/v1/cluster.pb.h"

namespace caravan {

/// Whether `now` is worth a report where `told` was the last. A stage's smaller capacity is, at
/// once: blocks that the coordinator counts on are gone already. More of it is, by an eighth, and
/// so is room that has changed by an eighth, by which others' replicas are placed.
bool IsWorthTelling(const v1::KvArchiveNews& told, const v1::KvArchiveNews& now);

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_ARCHIVE_NEWS_H_
