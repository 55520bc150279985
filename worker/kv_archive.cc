#include "worker/kv_archive.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

/// Blocks that may wait to be written. They take memory, and the page cache takes them at once.
constexpr size_t kWaitingBlocks = 2;

// One call brings at most so much, or one part: then a slow peer is found out before long.
constexpr int64_t kErrandBytes = int64_t{32} << 20;

}  // namespace

int64_t KvArchive::BlockBytes(const Options& options, absl::Span<const LayerRange> incoming) {
  int64_t bytes = KvBlockStore::FileBytes(options.format, options.layers.num);
  for (const LayerRange& each : incoming) {
    bytes += KvBlockStore::FileBytes(options.format, each.num);
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<KvArchive>> KvArchive::Open(const Options& options) {
  CARAVAN_CHECK(options.place.store != nullptr && options.layers.num > 0);
  const KvBlockStore& store = *options.place.store;
  const int64_t own_bytes = BlockBytes(options, {});
  const int64_t block_bytes = BlockBytes(options, options.place.incoming);
  if (store.budget_bytes() < block_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the KV archive's budget of ", FormatByteSize(store.budget_bytes()),
        " holds no block: one of this stage takes ", FormatByteSize(own_bytes),
        block_bytes == own_bytes ? ""
                                 : absl::StrCat(", and what others send here of it ",
                                                FormatByteSize(block_bytes - own_bytes))));
  }
  auto archive = absl::WrapUnique(new KvArchive(options));
  archive->SetIncoming(options.place.incoming);
  archive->ListPeers();
  return archive;
}

KvArchive::KvArchive(const Options& options)
    : options_(options),
      given_up_(options.place.peers.size(), false),
      replicator_(MakeReplicator(options.place)),
      queue_(kWaitingBlocks),
      writer_("kv-archive", [this] { Write(); }) {}

KvArchive::~KvArchive() {
  StopFetching();
  queue_.Close();
  writer_.Join();
  // Its thread may ask for news meanwhile.
  std::unique_ptr<KvReplicator> last;
  MutexLock lock(&mu_);
  last.swap(replicator_);
}

std::unique_ptr<KvReplicator> KvArchive::MakeReplicator(const Place& place) const {
  if (place.replica == nullptr) return nullptr;
  KvReplicator::Options options;
  options.format = options_.format;
  options.layers = options_.layers;
  options.store = options_.place.store;
  options.to = place.replica;
  options.room_blocks = place.replica_blocks;
  options.on_refused = options_.place.on_change;
  return std::make_unique<KvReplicator>(std::move(options));
}

void KvArchive::SetIncoming(absl::Span<const LayerRange> incoming) {
  std::vector<LayerRange> ranges = {options_.layers};
  ranges.insert(ranges.end(), incoming.begin(), incoming.end());
  const int64_t block_bytes = BlockBytes(options_, incoming);
  const int64_t excess_bytes = options_.place.store->Prefer(options_.format, ranges, block_bytes);
  MutexLock lock(&mu_);
  block_bytes_ = block_bytes;
  excess_bytes_ = excess_bytes;
}

void KvArchive::SetReplica(const Place& place) {
  SetIncoming(place.incoming);
  KvReplicator* before = nullptr;
  {
    MutexLock lock(&mu_);
    before = replicator_.get();
  }
  const uint64_t now = before == nullptr ? 0 : before->to()->incarnation();
  if (now != (place.replica == nullptr ? 0 : place.replica->incarnation())) {
    if (before != nullptr) before->Stop();
    std::unique_ptr<KvReplicator> gone;
    MutexLock lock(&mu_);
    if (before != nullptr) counters_.replicas += before->counters();
    gone.swap(replicator_);
    // Under the lock: of what is written meanwhile the new one is either offered it or finds it.
    if (!stop_.stop_requested()) replicator_ = MakeReplicator(place);
  }
  options_.place.on_change();
}

int64_t KvArchive::capacity() const {
  const int64_t room_bytes = options_.place.store->room_bytes();
  MutexLock lock(&mu_);
  return std::max<int64_t>(1, (room_bytes - excess_bytes_) / block_bytes_);
}

KvArchive::News KvArchive::news() const {
  News news;
  news.capacity = capacity();
  MutexLock lock(&mu_);
  if (replicator_ != nullptr && replicator_->refused()) {
    news.refused_by = replicator_->to()->incarnation();
  }
  return news;
}

void KvArchive::ListPeers() {
  const std::vector<std::shared_ptr<KvPeer>>& peers = options_.place.peers;
  std::vector<absl::StatusOr<std::vector<ListedKvPart>>> lists(peers.size());
  {
    std::vector<std::unique_ptr<NamedThread>> threads;
    for (size_t i = 0; i < peers.size(); ++i) {
      threads.push_back(std::make_unique<NamedThread>("kv-list", [this, &peers, &lists, i] {
        lists[i] = peers[i]->List(options_.format, options_.layers, kListTimeout);
      }));
    }
  }
  listed_at_ = absl::Now();
  for (size_t i = 0; i < peers.size(); ++i) {
    if (!lists[i].ok()) {
      LogWarning("kv_peer_not_listed", {{"why", lists[i].status().message()}});
      given_up_[i] = true;
      continue;
    }
    for (const ListedKvPart& each : *lists[i]) {
      const auto [found, added] = remote_.try_emplace(each.part.name, RemoteBlock{{}, each.unused});
      found->second.parts.push_back({i, each.part.layers});
      found->second.unused = std::min(found->second.unused, each.unused);
    }
  }
}

std::vector<KvBlockName> KvArchive::Names(size_t limit) const {
  struct Known {
    std::vector<LayerRange> layers;
    absl::Duration unused = absl::InfiniteDuration();
  };
  absl::flat_hash_map<KvBlockName, Known> known;
  std::vector<KvBlockName> order;  // that of the last mention here, then theirs
  for (const ListedKvPart& each :
       options_.place.store->List(options_.format, options_.layers, SIZE_MAX)) {
    Known& block = known[each.part.name];
    if (block.layers.empty()) order.push_back(each.part.name);
    block.layers.push_back(each.part.layers);
    block.unused = std::min(block.unused, each.unused);
  }
  const absl::Duration since = absl::Now() - listed_at_;
  for (const auto& [name, remote] : remote_) {
    Known& block = known[name];
    if (block.layers.empty()) {
      order.push_back(name);
      block.unused = remote.unused + since;
    }
    for (const Elsewhere& part : remote.parts) block.layers.push_back(part.layers);
  }
  std::erase_if(order, [&](const KvBlockName& name) {
    return !Without(options_.layers, known[name].layers).empty();
  });
  std::stable_sort(order.begin(), order.end(), [&](const KvBlockName& a, const KvBlockName& b) {
    return known[a].unused > known[b].unused;
  });
  if (order.size() > limit) order.erase(order.begin(), order.end() - static_cast<ptrdiff_t>(limit));
  return order;
}

absl::Status KvArchive::Keep(const KvBlockName& name, CopyOut copy) {
  {
    MutexLock lock(&mu_);
    if (waiting_.contains(name)) return absl::OkStatus();
  }
  if (options_.place.store->Use(options_.format, {name, options_.layers}).empty()) {
    Replicate(name);
    return absl::OkStatus();
  }
  Block block;
  block.name = name;
  const auto layer_bytes = static_cast<size_t>(options_.format.layer_bytes());
  block.layers.resize(static_cast<size_t>(options_.layers.num) * layer_bytes);
  const absl::Span<std::byte> layers = absl::MakeSpan(block.layers);
  for (int layer = 0; layer < options_.layers.num; ++layer) {
    CARAVAN_RETURN_IF_ERROR(
        copy(layer, layers.subspan(static_cast<size_t>(layer) * layer_bytes, layer_bytes)));
  }
  {
    MutexLock lock(&mu_);
    waiting_.insert(name);
  }
  queue_.Push(std::move(block));
  return absl::OkStatus();
}

void KvArchive::Write() {
  while (const std::optional<Block> block = queue_.Pop()) {
    const absl::Status written =
        options_.place.store->Write(options_.format, {block->name, options_.layers}, block->layers);
    if (written.ok()) Replicate(block->name);
    options_.place.on_change();
    MutexLock lock(&mu_);
    if (written.ok()) {
      ++counters_.kept;
    } else if (!warned_) {
      warned_ = true;
      LogWarning("kv_not_archived", {{"why", written.message()}});
    }
    waiting_.erase(block->name);
    written_.SignalAll();
  }
}

void KvArchive::Replicate(const KvBlockName& name) {
  MutexLock lock(&mu_);
  if (replicator_ != nullptr && !stop_.stop_requested()) replicator_->Offer(name);
}

void KvArchive::Fetch(absl::Span<const KvBlockName> names) {
  fetched_.clear();
  {
    MutexLock lock(&mu_);
    for (const KvBlockName& name : names) {
      while (waiting_.contains(name)) written_.Wait(&mu_);
    }
  }
  const absl::Duration deadline = SteadyClock().Now() + kMostFetching;
  // Each errand brings all that it is to, or there is less to be asked for.
  while (!stop_.stop_requested()) {
    const std::optional<Errand> errand = NextErrand(names);
    const absl::Duration left = deadline - SteadyClock().Now();
    if (!errand.has_value() || left <= absl::ZeroDuration()) break;
    Run(*errand, left);
  }
  for (const KvBlockName& name : names) Replicate(name);
  options_.place.on_change();
}

std::optional<KvArchive::Errand> KvArchive::NextErrand(absl::Span<const KvBlockName> names) {
  Errand errand;
  int64_t bytes = 0;
  for (const KvBlockName& name : names) {
    // All of them, lest what comes puts out what is here.
    const std::vector<LayerRange> missing =
        options_.place.store->Use(options_.format, {name, options_.layers});
    const auto remote = remote_.find(name);
    if (remote == remote_.end() || errand.parts.size() == kMostKvParts) {
      continue;
    }
    for (const LayerRange& range : missing) {
      for (const Elsewhere& part : remote->second.parts) {
        const LayerRange there = Overlap(part.layers, range);
        if (there.num == 0 || given_up_[part.peer]) continue;
        const int64_t part_bytes = there.num * options_.format.layer_bytes();
        if (!errand.parts.empty() &&
            (errand.peer != part.peer || bytes + part_bytes > kErrandBytes)) {
          continue;
        }
        errand.peer = part.peer;
        errand.parts.push_back({name, there});
        bytes += part_bytes;
        break;
      }
      if (errand.parts.size() == kMostKvParts) break;
    }
  }
  if (errand.parts.empty()) return std::nullopt;
  return errand;
}

void KvArchive::Run(const Errand& errand, absl::Duration time_left) {
  KvPeer& peer = *options_.place.peers[errand.peer];
  int64_t bytes = 0;
  for (const KvBlockPart& part : errand.parts) {
    bytes += part.layers.num * options_.format.layer_bytes();
  }
  absl::Status written;
  const absl::Status got =
      peer.Get(options_.format, errand.parts, std::min(KvCallTimeout(bytes), time_left),
               [&](const KvBlockPart& part, absl::Span<const std::byte> layers) {
                 written = options_.place.store->Write(options_.format, part, layers);
                 if (written.ok()) fetched_.insert(part.name);
                 return written;
               });
  if (!got.ok()) {
    given_up_[errand.peer] = true;
    if (!stop_.stop_requested()) LogWarning("kv_not_fetched", {{"why", got.message()}});
  }
  // What it was asked for has come, or will not.
  for (const KvBlockPart& part : errand.parts) {
    std::erase_if(remote_[part.name].parts, [&](const Elsewhere& each) {
      return each.peer == errand.peer && Overlap(each.layers, part.layers).num > 0;
    });
  }
}

absl::Status KvArchive::Restore(const KvBlockName& name, CopyIn copy) {
  {
    MutexLock lock(&mu_);
    while (waiting_.contains(name)) written_.Wait(&mu_);
  }
  CARAVAN_RETURN_IF_ERROR(
      options_.place.store->Read(options_.format, {name, options_.layers}, copy));
  MutexLock lock(&mu_);
  ++(fetched_.contains(name) ? counters_.restored_from_peers : counters_.restored_from_disk);
  return absl::OkStatus();
}

void KvArchive::StopFetching() {
  stop_.request_stop();
  for (const std::shared_ptr<KvPeer>& peer : options_.place.peers) peer->Cancel();
  std::shared_ptr<KvPeer> replica;
  {
    MutexLock lock(&mu_);
    if (replicator_ != nullptr) replica = replicator_->to();
  }
  if (replica != nullptr) replica->Cancel();
}

KvArchive::Counters KvArchive::counters() const {
  MutexLock lock(&mu_);
  Counters counters = counters_;
  if (replicator_ != nullptr) counters.replicas += replicator_->counters();
  return counters;
}

void KvArchive::Flush() {
  KvReplicator* replicator = nullptr;
  {
    MutexLock lock(&mu_);
    while (!waiting_.empty()) written_.Wait(&mu_);
    replicator = replicator_.get();
  }
  if (replicator != nullptr) replicator->Flush();
}

}  // namespace caravan
