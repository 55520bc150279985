// A stage's archive, with peers that are other stores of the same process.

#include "worker/kv_archive.h"

#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/kv_testing.h"
#include "worker/kv_replicator.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

/// A peer whose archive is `store`, and that may fail.
class FakePeer : public KvPeer {
 public:
  FakePeer(std::string name, uint64_t incarnation, std::shared_ptr<KvBlockStore> store)
      : name_(std::move(name)), incarnation_(incarnation), store_(std::move(store)) {}

  const std::string& name() const override { return name_; }
  uint64_t incarnation() const override { return incarnation_; }
  absl::StatusOr<std::vector<ListedKvPart>> List(const KvFormat& format, const LayerRange& layers,
                                                 absl::Duration) override {
    CARAVAN_RETURN_IF_ERROR(fails);
    return store_->List(format, layers, kMostArchivedNames);
  }
  absl::Status Get(const KvFormat& format, absl::Span<const KvBlockPart> wanted, absl::Duration,
                   Take take) override {
    ++gets;
    CARAVAN_RETURN_IF_ERROR(fails);
    for (const KvBlockPart& part : wanted) {
      if (parts_until_it_dies-- == 0) return absl::UnavailableError("it died");
      std::vector<std::byte> layers;
      const absl::Status read =
          store_->Read(format, part, [&](int, absl::Span<const std::byte> bytes) {
            layers.insert(layers.end(), bytes.begin(), bytes.end());
            return absl::OkStatus();
          });
      if (read.ok()) CARAVAN_RETURN_IF_ERROR(take(part, layers));
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<KvBlockName>> Offer(const KvFormat& format, const LayerRange& layers,
                                                 absl::Span<const KvBlockName> names,
                                                 absl::Duration) override {
    if (before_offer) before_offer();
    CARAVAN_RETURN_IF_ERROR(fails);
    std::vector<KvBlockName> lacking;
    for (const KvBlockName& name : names) {
      if (!store_->Use(format, {name, layers}).empty()) lacking.push_back(name);
    }
    lacking.insert(lacking.end(), also_lacking.begin(), also_lacking.end());
    return lacking;
  }
  absl::Status Put(const KvFormat& format, const KvBlockPart& part,
                   absl::Span<const std::byte> layers, absl::Duration) override {
    ++puts;
    taken.push_back(part.name);
    if (before_put) before_put();
    CARAVAN_RETURN_IF_ERROR(put_fails);
    return store_->Write(format, part, layers);
  }
  void Cancel() override { cancelled = true; }

  absl::Status fails;
  int64_t parts_until_it_dies = -1;
  std::function<void()> before_offer;
  std::function<void()> before_put;
  absl::Status put_fails;
  std::vector<KvBlockName> taken;         // what was put, in order; read after a Flush
  std::vector<KvBlockName> also_lacking;  // what its answer to an offer says besides
  int gets = 0;
  std::atomic<int> puts = 0;
  std::atomic<bool> cancelled = false;

 private:
  const std::string name_;
  const uint64_t incarnation_;
  const std::shared_ptr<KvBlockStore> store_;
};

class KvArchiveTest : public ::testing::Test {
 protected:
  std::shared_ptr<KvBlockStore> Store(const std::string& name, int64_t budget = 1 << 20) const {
    return MustOpenKvStore(dir_.File(name), budget);
  }
  std::shared_ptr<FakePeer> Peer(const std::string& name,
                                 const std::vector<std::pair<int, LayerRange>>& blocks = {}) {
    std::shared_ptr<KvBlockStore> store = Store(name);
    for (const auto& [i, layers] : blocks) EXPECT_TRUE(WriteKv(*store, i, layers).ok());
    peers_.push_back(store);
    return std::make_shared<FakePeer>(name, peers_.size(), store);
  }

  /// Of layers 4 and 5.
  static std::unique_ptr<KvArchive> MustOpen(KvArchive::Place place,
                                             const LayerRange& layers = {4, 2}) {
    auto archive = KvArchive::Open({std::move(place), kSmallKv, layers});
    EXPECT_TRUE(archive.ok()) << archive.status();
    return *std::move(archive);
  }

  /// Of `to`, which has room for so many blocks.
  static KvArchive::Place Replica(std::shared_ptr<KvPeer> to, int64_t replica_blocks = 100) {
    KvArchive::Place place;
    place.replica = std::move(to);
    place.replica_blocks = replica_blocks;
    return place;
  }

  /// Of layers 4 and 5 to `to`, without a pause after a failure.
  KvReplicator::Options TellingWhenRefused(std::shared_ptr<KvPeer> to,
                                           std::promise<void>& told) const {
    KvReplicator::Options options;
    options.format = kSmallKv;
    options.layers = {4, 2};
    options.store = Store("own");
    options.to = std::move(to);
    options.retry_delay = absl::ZeroDuration();
    options.on_refused = [&told] { told.set_value(); };
    return options;
  }

  static void Keep(KvArchive& archive, int i, const LayerRange& layers = {4, 2}) {
    EXPECT_TRUE(archive
                    .Keep(KvName(i),
                          [&](int layer, absl::Span<std::byte> to) {
                            std::fill(to.begin(), to.end(), KvValue(i, layers.first + layer));
                            return absl::OkStatus();
                          })
                    .ok());
  }
  static absl::Status Restore(KvArchive& archive, int i, const LayerRange& layers = {4, 2}) {
    std::vector<std::byte> restored;
    const absl::Status status =
        archive.Restore(KvName(i), [&](int, absl::Span<const std::byte> from) {
          restored.insert(restored.end(), from.begin(), from.end());
          return absl::OkStatus();
        });
    if (status.ok()) {
      EXPECT_EQ(restored, KvLayers(i, layers));
    }
    return status;
  }
  static std::vector<KvBlockName> Names(const std::vector<int>& blocks) {
    std::vector<KvBlockName> names;
    for (const int i : blocks) names.push_back(KvName(i));
    return names;
  }

  const TempDir dir_;
  std::vector<std::shared_ptr<KvBlockStore>> peers_;  // of Peer, in order
};

constexpr int64_t kBlockBytes = 24 + 2 * (8 + kSmallLayerBytes);  // of two layers

TEST_F(KvArchiveTest, ABlockOutlivesTheArchive) {
  const std::shared_ptr<KvBlockStore> store = Store("own", 3 * kBlockBytes);
  {
    const auto archive = MustOpen({store, {}, nullptr, {}});
    EXPECT_EQ(archive->capacity(), 3);
    EXPECT_EQ(Restore(*archive, 1).code(), absl::StatusCode::kNotFound);
    Keep(*archive, 1);
    Keep(*archive, 2);
    archive->Flush();
    archive->Fetch(Names({1}));
    EXPECT_TRUE(Restore(*archive, 1).ok());
    EXPECT_THAT(archive->Names(9), ElementsAre(KvName(2), KvName(1)));
    EXPECT_THAT(archive->Names(1), ElementsAre(KvName(1)));
    EXPECT_EQ(archive->counters().kept, 2);
    EXPECT_EQ(archive->counters().restored_from_disk, 1);
    EXPECT_EQ(archive->counters().restored_from_peers, 0);
  }
  const auto archive = MustOpen({store, {}, nullptr, {}});
  EXPECT_THAT(archive->Names(9), ElementsAre(KvName(2), KvName(1)));
  EXPECT_TRUE(Restore(*archive, 2).ok());
  Keep(*archive, 2);
  archive->Flush();
  EXPECT_EQ(archive->counters().kept, 0) << "it is there already";
  EXPECT_THAT(archive->Names(9), ElementsAre(KvName(1), KvName(2))) << "and used";
}

TEST_F(KvArchiveTest, WhatWaitsIsWrittenAtTheEnd) {
  const std::shared_ptr<KvBlockStore> store = Store("own");
  {
    const auto archive = MustOpen({store, {}, nullptr, {}});
    for (int i = 0; i < 9; ++i) Keep(*archive, i);
  }
  EXPECT_THAT(MustOpen({store, {}, nullptr, {}})->Names(99), SizeIs(9));
}

TEST_F(KvArchiveTest, FilesOfOtherSplitsServeTogether) {
  const std::shared_ptr<KvBlockStore> store = Store("own");
  EXPECT_TRUE(WriteKv(*store, 1, {2, 3}).ok());
  EXPECT_TRUE(WriteKv(*store, 1, {5, 3}).ok());
  EXPECT_TRUE(WriteKv(*store, 2, {5, 3}).ok());
  const auto archive = MustOpen({store, {}, nullptr, {}});
  EXPECT_THAT(archive->Names(9), ElementsAre(KvName(1)));
  EXPECT_TRUE(Restore(*archive, 1).ok());
  EXPECT_EQ(Restore(*archive, 2).code(), absl::StatusCode::kNotFound);
  Keep(*archive, 2);
  archive->Flush();
  EXPECT_TRUE(Restore(*archive, 2).ok());
}

TEST_F(KvArchiveTest, TheCapacityLeavesRoomForWhatOthersSendAndForOtherSplits) {
  const std::shared_ptr<KvBlockStore> store = Store("own", 10 * kBlockBytes);
  EXPECT_EQ(MustOpen({store, {}, nullptr, {}})->capacity(), 10);
  EXPECT_EQ(MustOpen({store, {}, nullptr, {{2, 2}}})->capacity(), 5);
  EXPECT_TRUE(WriteKv(*store, 1, {3, 5}).ok());  // more layers than the stage has
  EXPECT_EQ(MustOpen({store, {}, nullptr, {}})->capacity(), 8);
  const auto too_small =
      KvArchive::Open({{Store("small", kBlockBytes), {}, nullptr, {{2, 2}}}, kSmallKv, {4, 2}});
  EXPECT_EQ(too_small.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(too_small.status().message()), HasSubstr("what others send here"));
}

TEST_F(KvArchiveTest, WhatIsCountedOnIsThereHoweverMuchOthersSend) {
  // As the coordinator counts on it: `capacity` blocks, those used last.
  const std::shared_ptr<KvBlockStore> store = Store("own", 20 * kBlockBytes);
  for (int i = 20; i < 60; ++i) EXPECT_TRUE(WriteKv(*store, i, {8, 2}).ok());  // of old plans
  const auto archive = MustOpen({store, {}, nullptr, {{2, 2}}});
  ASSERT_EQ(archive->capacity(), 10);
  for (int i = 0; i < 15; ++i) {
    Keep(*archive, i);
    archive->Flush();
    EXPECT_TRUE(WriteKv(*store, i, {2, 2}).ok());
    for (int k = std::max(0, i - 9); k <= i; ++k) EXPECT_TRUE(Restore(*archive, k).ok()) << k;
  }
}

TEST_F(KvArchiveTest, LayersComeFromWhoHasThem) {
  const std::shared_ptr<KvBlockStore> store = Store("own");
  EXPECT_TRUE(WriteKv(*store, 1, {4, 1}).ok());
  EXPECT_TRUE(WriteKv(*store, 2, {4, 2}).ok());
  const auto a = Peer("a", {{1, {5, 3}}, {3, {4, 1}}, {5, {4, 2}}});
  const auto b = Peer("b", {{3, {3, 3}}, {4, {5, 1}}});
  const auto archive = MustOpen({store, {a, b}, nullptr, {}});
  EXPECT_THAT(archive->Names(9),
              ::testing::UnorderedElementsAre(KvName(1), KvName(2), KvName(3), KvName(5)));
  archive->Fetch(Names({1, 2, 3}));
  for (const int i : {1, 2, 3}) EXPECT_TRUE(Restore(*archive, i).ok()) << i;
  EXPECT_EQ(archive->counters().restored_from_peers, 2);
  EXPECT_EQ(archive->counters().restored_from_disk, 1);
  EXPECT_EQ(a->gets + b->gets, 2) << "a round trip each";
  // It is kept here.
  archive->Fetch(Names({1, 2, 3}));
  for (const int i : {1, 2, 3}) EXPECT_TRUE(Restore(*archive, i).ok()) << i;
  EXPECT_EQ(archive->counters().restored_from_disk, 4);
  EXPECT_EQ(a->gets + b->gets, 2);
  // What nobody has is not there.
  archive->Fetch(Names({4, 6}));
  EXPECT_EQ(Restore(*archive, 4).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Restore(*archive, 6).code(), absl::StatusCode::kNotFound);
}

TEST_F(KvArchiveTest, ManyBlocksComeInFewRoundTrips) {
  std::vector<std::pair<int, LayerRange>> blocks;
  std::vector<int> numbers;
  for (int i = 0; i < 300; ++i) {
    blocks.push_back({i, {4, 2}});
    numbers.push_back(i);
  }
  const auto a = Peer("a", blocks);
  const auto archive = MustOpen({Store("own"), {a}, nullptr, {}});
  archive->Fetch(Names(numbers));
  EXPECT_EQ(a->gets, 2);
  for (const int i : numbers) EXPECT_TRUE(Restore(*archive, i).ok()) << i;
}

TEST_F(KvArchiveTest, APeerThatDiesMidwayIsReplacedByAnother) {
  const std::vector<std::pair<int, LayerRange>> blocks = {{1, {4, 2}}, {2, {4, 2}}, {3, {4, 2}}};
  for (const bool another : {true, false}) {
    const auto a = Peer(another ? "a" : "c", blocks);
    a->parts_until_it_dies = 1;
    std::vector<std::shared_ptr<KvPeer>> peers = {a};
    if (another) peers.push_back(Peer("b", blocks));
    const auto archive = MustOpen({Store(another ? "own" : "alone"), peers, nullptr, {}});
    archive->Fetch(Names({1, 2, 3}));
    EXPECT_TRUE(Restore(*archive, 1).ok());
    for (const int i : {2, 3}) {
      EXPECT_EQ(Restore(*archive, i).code(),
                another ? absl::StatusCode::kOk : absl::StatusCode::kNotFound);
    }
    archive->Fetch(Names({2, 3}));
    EXPECT_EQ(a->gets, 1) << "it is given up";
  }
}

TEST_F(KvArchiveTest, APeerThatDoesNotAnswerHasNothing) {
  const auto silent = Peer("silent", {{1, {4, 2}}});
  silent->fails = absl::DeadlineExceededError("no answer");
  const auto archive = MustOpen({Store("own"), {silent}, nullptr, {}});
  EXPECT_THAT(archive->Names(9), IsEmpty());
  archive->Fetch(Names({1}));
  EXPECT_EQ(silent->gets, 0);
}

TEST_F(KvArchiveTest, NothingIsFetchedOnceItIsStopped) {
  const auto a = Peer("a", {{1, {4, 2}}});
  const auto archive = MustOpen({Store("own"), {a}, nullptr, {}});
  archive->StopFetching();
  EXPECT_TRUE(a->cancelled);
  archive->Fetch(Names({1}));
  EXPECT_EQ(a->gets, 0);
  EXPECT_EQ(Restore(*archive, 1).code(), absl::StatusCode::kNotFound);
}

TEST_F(KvArchiveTest, WhatIsKeptGoesToAnother) {
  const auto a = Peer("a", {{2, {4, 2}}, {1, {8, 1}}});
  const auto archive = MustOpen({Store("own"), {}, a, {}});
  for (const int i : {1, 2, 3}) Keep(*archive, i);
  archive->Flush();
  EXPECT_EQ(a->puts, 2) << "one was there";
  EXPECT_EQ(archive->counters().replicas.sent, 2);
  EXPECT_EQ(archive->counters().replicas.bytes, 4 * kSmallLayerBytes);
  EXPECT_EQ(archive->counters().replicas.dropped, 0);
  for (const int i : {1, 2, 3}) EXPECT_TRUE(ReadKv(*peers_[0], i, {4, 2}).ok());
  // What is used here is used there.
  Keep(*archive, 1);
  archive->Fetch(Names({2}));
  archive->Flush();
  EXPECT_EQ(a->puts, 2);
  const std::vector<ListedKvPart> there = peers_[0]->List(kSmallKv, {4, 2}, 99);
  ASSERT_THAT(there, SizeIs(3));
  EXPECT_EQ(there[0].part.name, KvName(3));
  EXPECT_EQ(there[2].part.name, KvName(2));
}

TEST_F(KvArchiveTest, StepsDoNotWaitForReplicas) {
  const auto a = Peer("a");
  std::promise<void> asked;
  std::promise<void> answer;
  a->before_offer = [&, first = true]() mutable {
    if (!std::exchange(first, false)) return;
    asked.set_value();
    answer.get_future().wait();
  };
  const auto archive = MustOpen({Store("own"), {}, a, {}});
  Keep(*archive, 0);
  asked.get_future().wait();
  while (archive->counters().replicas.dropped < 10) Keep(*archive, 0);
  answer.set_value();
  archive->Flush();
  EXPECT_EQ(archive->counters().replicas.sent, 1);
}

TEST_F(KvArchiveTest, AReplicaThatCannotBeHadIsCounted) {
  const auto a = Peer("a");
  a->fails = absl::UnavailableError("gone");
  const auto archive = MustOpen({Store("own"), {}, a, {}});
  Keep(*archive, 1);
  archive->Flush();
  EXPECT_EQ(archive->counters().replicas.dropped, 1);
  EXPECT_EQ(archive->counters().replicas.sent, 0);
  EXPECT_EQ(archive->news().refused_by, 0u) << "it may only have been busy";
  EXPECT_TRUE(Restore(*archive, 1).ok());
}

TEST_F(KvArchiveTest, AnotherGetsTheReplicasAndWhatWasThereBefore) {
  const auto a = Peer("a");
  const auto archive = MustOpen({Store("own"), {}, a, {}, 100});
  for (const int i : {1, 2, 3}) Keep(*archive, i);
  archive->Flush();
  ASSERT_EQ(a->puts, 3);
  const auto b = Peer("b", {{2, {4, 2}}});
  archive->SetReplica(Replica(b));
  EXPECT_TRUE(a->cancelled);
  Keep(*archive, 4);
  archive->Flush();
  EXPECT_EQ(a->puts, 3);
  EXPECT_EQ(b->puts, 3);
  for (const int i : {1, 2, 3, 4}) EXPECT_TRUE(ReadKv(*peers_[1], i, {4, 2}).ok()) << i;
  EXPECT_EQ(archive->counters().replicas.sent, 6);
  EXPECT_EQ(archive->counters().replicas.bytes, 12 * kSmallLayerBytes);
  EXPECT_EQ(archive->counters().replicas.dropped, 0);
  // The same one goes on as it is.
  archive->SetReplica(Replica(b));
  archive->Flush();
  EXPECT_FALSE(b->cancelled);
  EXPECT_EQ(b->puts, 3);
  archive->SetReplica({});
  EXPECT_TRUE(b->cancelled);
  Keep(*archive, 5);
  archive->Flush();
  EXPECT_EQ(b->puts, 3);
  EXPECT_EQ(archive->counters().replicas.sent, 6);
  archive->StopFetching();
  const auto c = Peer("c");
  archive->SetReplica(Replica(c));
  archive->Flush();
  EXPECT_EQ(c->puts, 0) << "nothing is sent when all ends";
}

TEST_F(KvArchiveTest, OfWhatWasThereBeforeTheLatestComesFirst) {
  const std::shared_ptr<KvBlockStore> store = Store("own");
  for (int i = 1; i <= 6; ++i) EXPECT_TRUE(WriteKv(*store, i, {4, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 7, {4, 1}).ok());  // not whole
  const auto a = Peer("a");
  const auto archive = MustOpen({store, {}, a, {}, 4});
  archive->Flush();
  EXPECT_THAT(a->taken, ElementsAre(KvName(6), KvName(5), KvName(4), KvName(3)))
      << "as many as there is room for";
  // It has them in the order of their use, so that the oldest go first.
  std::vector<KvBlockName> there;
  for (const ListedKvPart& each : peers_[0]->List(kSmallKv, {4, 2}, 99)) {
    there.push_back(each.part.name);
  }
  EXPECT_THAT(there, ElementsAre(KvName(3), KvName(4), KvName(5), KvName(6)));
}

TEST_F(KvArchiveTest, WhatIsNewComesBeforeWhatWasThereBefore) {
  const std::shared_ptr<KvBlockStore> store = Store("own");
  for (int i = 1; i <= 3; ++i) EXPECT_TRUE(WriteKv(*store, i, {4, 2}).ok());
  const auto a = Peer("a");
  const auto archive = MustOpen({store, {}, nullptr, {}});
  a->before_put = [&, first = true]() mutable {
    if (!std::exchange(first, false)) return;
    Keep(*archive, 9);
    EXPECT_TRUE(Restore(*archive, 9).ok());  // waits until it is written, and offered
  };
  archive->SetReplica(Replica(a));
  archive->Flush();
  EXPECT_THAT(a->taken, ElementsAre(KvName(3), KvName(9), KvName(2), KvName(1)));
}

TEST_F(KvArchiveTest, OneThatHasNoRoomIsToldOfAtOnce) {
  const auto a = Peer("a");
  a->put_fails = absl::ResourceExhaustedError("its disk is full");
  std::promise<void> refused;
  KvArchive* archive = nullptr;
  KvArchive::Place place = Replica(a);
  place.store = Store("own");
  std::atomic<bool> told = false;
  place.on_change = [&] {
    if (archive == nullptr || archive->news().refused_by == 0) return;
    if (!told.exchange(true)) refused.set_value();
  };
  const auto opened = MustOpen(place);
  archive = opened.get();
  Keep(*archive, 1);
  refused.get_future().wait();
  EXPECT_EQ(archive->news().refused_by, a->incarnation());
  const auto b = Peer("b");
  archive->SetReplica(Replica(b));
  archive->Flush();
  EXPECT_EQ(archive->news().refused_by, 0u);
  EXPECT_THAT(b->taken, ElementsAre(KvName(1))) << "what the other did not take";
}

TEST_F(KvArchiveTest, ThatItLacksNothingIsNoSignThatAReplicaTakesAnything) {
  const auto a = Peer("a", {{2, {4, 2}}});
  a->put_fails = absl::ResourceExhaustedError("its disk is full");
  std::promise<void> told;
  const KvReplicator::Options options = TellingWhenRefused(a, told);
  for (const int i : {1, 2}) ASSERT_TRUE(WriteKv(*options.store, i, {4, 2}).ok());
  KvReplicator replicator(options);
  replicator.Offer(KvName(1));
  told.get_future().wait();
  replicator.Offer(KvName(2));
  replicator.Flush();
  EXPECT_TRUE(replicator.refused());
  a->put_fails = absl::OkStatus();
  replicator.Offer(KvName(1));
  replicator.Flush();
  EXPECT_FALSE(replicator.refused());
  EXPECT_EQ(replicator.counters().sent, 1);
}

TEST_F(KvArchiveTest, AReplicaThatCancelsACallIsOneThatDoesNotAnswer) {
  const auto a = Peer("a");
  a->fails = absl::CancelledError("by its end");
  std::promise<void> told;
  const KvReplicator::Options options = TellingWhenRefused(a, told);
  ASSERT_TRUE(WriteKv(*options.store, 1, {4, 2}).ok());
  KvReplicator replicator(options);
  replicator.Offer(KvName(1));
  replicator.Flush();
  EXPECT_FALSE(replicator.refused()) << "it may only have been busy";
  replicator.Offer(KvName(1));
  told.get_future().wait();
  EXPECT_TRUE(replicator.refused());
  a->fails = absl::OkStatus();
  replicator.Offer(KvName(1));
  replicator.Flush();
  EXPECT_FALSE(replicator.refused());
  EXPECT_EQ(replicator.counters().sent, 1);
}

TEST_F(KvArchiveTest, ADiskThatIsFullLeavesRoomForFewerBlocks) {
  const std::shared_ptr<KvBlockStore> store = Store("own", 20 * kBlockBytes);
  KvArchive::Place place;
  place.store = store;
  int64_t told = 0;
  KvArchive* archive = nullptr;
  place.on_change = [&] { told = archive->news().capacity; };
  const auto opened = MustOpen(place);
  archive = opened.get();
  EXPECT_EQ(archive->capacity(), 20);
  for (int i = 1; i < 6; ++i) Keep(*archive, i);
  archive->Flush();
  EXPECT_EQ(told, 20);
  // The next block finds the disk full until the first one goes.
  const auto path = [&](int i) { return dir_.File("own/F32-3x8/" + KvName(i).Hex() + "-4-2.kv"); };
  std::filesystem::remove(path(1));
  std::filesystem::create_symlink("/dev/full", path(1));
  std::filesystem::create_symlink(path(1), path(6));
  Keep(*archive, 6);
  opened->Flush();
  EXPECT_EQ(archive->capacity(), 4);
  // And others' layers take their part of it.
  KvArchive::Place more;
  more.incoming = {{2, 2}};
  archive->SetReplica(more);
  EXPECT_EQ(archive->capacity(), 2);
  EXPECT_EQ(told, 2);
  for (const int i : {5, 6}) EXPECT_TRUE(Restore(*archive, i).ok()) << i;
}

TEST_F(KvArchiveTest, SaysWhatIsWrong) {
  const auto none = KvArchive::Open({{Store("own", 1), {}, nullptr, {}}, kSmallKv, {4, 2}});
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("holds no block"));
  const auto archive = MustOpen({Store("other"), {}, nullptr, {}});
  EXPECT_EQ(archive->Keep(
                KvName(1),
                [](int, absl::Span<std::byte>) { return absl::InternalError("the card says no"); }),
            absl::InternalError("the card says no"));
  archive->Flush();
  EXPECT_THAT(archive->Names(9), IsEmpty());
}

TEST_F(KvArchiveTest, OnlyWhatWasOfferedIsSentAndOnce) {
  const std::shared_ptr<FakePeer> other = Peer("other");
  const auto archive = MustOpen({Store("own"), {}, other, {}});
  Keep(*archive, 1);
  archive->Flush();
  ASSERT_EQ(other->puts, 1);
  other->also_lacking = Names({1, 2, 2});  // 1 was sent before, and is not offered
  Keep(*archive, 2);
  archive->Flush();
  EXPECT_EQ(other->puts, 2);
  EXPECT_EQ(archive->counters().replicas.sent, 2);
  EXPECT_EQ(archive->counters().replicas.dropped, 0);
}

}  // namespace
}  // namespace caravan
