// The expert store against a plain model of it, and on disks that fail.

#include "worker/experts/expert_store.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/experts/expert_testing.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Rng = std::mt19937_64;

int RandomInt(Rng& rng, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(rng);
}

/// Rows that choose kChosen experts each.
struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  std::set<int32_t> needed;

  /// Random ones out of the first `of`.
  Choice(Rng& rng, int rows, int of = PackedToy::kExperts) {
    std::vector<int32_t> all(static_cast<size_t>(of));
    for (int e = 0; e < of; ++e) all[static_cast<size_t>(e)] = e;
    for (int row = 0; row < rows; ++row) {
      std::shuffle(all.begin(), all.end(), rng);
      Add({all.begin(), all.begin() + PackedToy::kChosen});
    }
  }
  explicit Choice(const std::vector<int32_t>& row) { Add(row); }

 private:
  void Add(std::vector<int32_t> row) {
    std::sort(row.begin(), row.end());
    ids.insert(ids.end(), row.begin(), row.end());
    needed.insert(row.begin(), row.end());
    weights.resize(ids.size(), 0.25f);
  }
};

class ExpertStoreTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { toy_ = new PackedToy; }
  static void TearDownTestSuite() { delete toy_; }

  ExpertStore::Options Options() {
    ExpertStore::Options options;
    options.make_queue =
        [this](const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
      absl::StatusOr<std::unique_ptr<ReadQueue>> queue = ReadQueue::Create(reads);
      if (!queue.ok()) return queue.status();
      return std::make_unique<UnrulyQueue>(*std::move(queue), seed_, fault_);
    };
    return options;
  }

  std::unique_ptr<ExpertStore> MakeStore(int slots, const ExpertStore::Options& options) {
    auto store = ExpertStore::Create(toy_->config(), toy_->whole(), toy_->model(),
                                     slots * toy_->run_bytes(), options);
    CARAVAN_CHECK(store.ok());
    CARAVAN_CHECK((*store)->num_slots() == slots);
    return *std::move(store);
  }
  std::unique_ptr<ExpertStore> MakeStore(int slots) { return MakeStore(slots, Options()); }

  static const std::vector<std::byte>& BytesOf(const std::string& tensor) {
    static std::map<std::string, std::vector<std::byte>>& all =
        *new std::map<std::string, std::vector<std::byte>>;
    std::vector<std::byte>& bytes = all[tensor];
    if (bytes.empty()) {
      bytes.resize(static_cast<size_t>(toy_->model().Find(tensor)->num_bytes()));
      CARAVAN_CHECK(toy_->model().Read(tensor, absl::MakeSpan(bytes)).ok());
    }
    return bytes;
  }

  /// Takes experts up to `most` batches; all of the right weights, none twice, in order where that
  /// is promised. Returns them.
  static absl::StatusOr<std::set<int32_t>> Take(ExpertBatches& batches, int layer,
                                                int most = 1000) {
    std::set<int32_t> taken;
    int32_t last = -1;
    while (most-- > 0) {
      const absl::StatusOr<absl::Span<const LoadedExpert>> batch = batches.Next();
      if (!batch.ok()) return batch.status();
      if (batch->empty()) break;
      for (const LoadedExpert& expert : *batch) {
        EXPECT_TRUE(taken.insert(expert.id).second) << expert.id << " is given twice";
        if (batches.ascending()) {
          EXPECT_LT(last, expert.id);
        }
        last = expert.id;
        const std::string prefix = absl::StrCat("model.layers.", layer, ".mlp.experts.", expert.id);
        for (const auto& [name, matrix] : {std::pair{".gate_proj.weight", expert.weights.gate},
                                           std::pair{".up_proj.weight", expert.weights.up},
                                           std::pair{".down_proj.weight", expert.weights.down}}) {
          const std::vector<std::byte>& bytes = BytesOf(prefix + name);
          EXPECT_EQ(std::memcmp(matrix.data, bytes.data(), bytes.size()), 0) << prefix << name;
        }
      }
    }
    return taken;
  }

  static absl::Status VisitAll(ExpertStore& store, int layer, const Choice& choice) {
    absl::StatusOr<std::set<int32_t>> taken =
        Take(store.Visit(layer, choice.ids, choice.weights), layer);
    if (!taken.ok()) return taken.status();
    EXPECT_EQ(*taken, choice.needed);
    return absl::OkStatus();
  }

  void ExpectLost(const absl::Status& status, int layer, int expert, const std::string& says) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(absl::StrCat("layer ", layer, ", expert ", expert, ",")),
                      HasSubstr(toy_->PathOf(layer)), HasSubstr(says)));
  }

  /// As one row's router would for the next layer, if it may; whether it did.
  static bool Guess(ExpertStore& store, int layer, const std::vector<int32_t>& row) {
    if (!store.WantsGuess(layer)) return false;
    const Choice choice(row);
    store.Guess(layer, choice.ids, choice.weights, absl::ZeroDuration());
    return true;
  }

  /// Whether a read is that of this expert.
  static bool IsOf(const FileRead& read, int layer, int expert) {
    return read.file->path() == toy_->PathOf(layer) && read.offset == toy_->OffsetOf(layer, expert);
  }

  static PackedToy* toy_;
  uint64_t seed_ = 1;
  UnrulyQueue::Fault fault_;
};

PackedToy* ExpertStoreTest::toy_ = nullptr;

TEST_F(ExpertStoreTest, GivesEachExpertOnceWhateverItsSlots) {
  for (int slots = PackedToy::kChosen; slots <= PackedToy::kAllExperts; ++slots) {
    seed_ = static_cast<uint64_t>(slots);
    Rng rng(seed_);
    ExpertStore::Options options = Options();
    options.guesses = ExpertStore::Guesses::kAlways;
    const std::unique_ptr<ExpertStore> store = MakeStore(slots, options);
    int64_t needed = 0;
    int next_layer = RandomInt(rng, 1, PackedToy::kLayers);
    for (int turn = 0; turn < 60; ++turn) {
      const int layer = std::exchange(next_layer, RandomInt(rng, 1, PackedToy::kLayers));
      // One row, some, as many as touch nearly all; sometimes too many to be given out of order.
      const int rows = turn % 20 == 7 ? 600 : 1 << RandomInt(rng, 0, 5);
      const Choice choice(rng, rows, RandomInt(rng, PackedToy::kChosen, PackedToy::kExperts));
      needed += static_cast<int64_t>(choice.needed.size());
      ExpertBatches& batches = store->Visit(layer, choice.ids, choice.weights);
      // Guesses for the next visit, some of them right, in the midst of this one or after it.
      const Choice guess(rng, RandomInt(rng, 1, 3));
      const bool guesses = turn % 4 != 1;
      if (guesses && next_layer > layer && store->WantsGuess(next_layer)) {
        store->Guess(next_layer, guess.ids, guess.weights, absl::ZeroDuration());
      }
      const bool is_left = turn % 10 == 3;  // as a step that fails
      const auto taken = Take(batches, layer, is_left ? 1 : 1000);
      ASSERT_TRUE(taken.ok()) << taken.status();
      if (!is_left) {
        ASSERT_EQ(*taken, choice.needed) << slots << " slots, turn " << turn;
      }
      ASSERT_FALSE(HasFailure()) << slots << " slots, turn " << turn;
      if (guesses && next_layer <= layer && store->WantsGuess(next_layer)) {
        store->Guess(next_layer, guess.ids, guess.weights, absl::ZeroDuration());
      }
    }
    const ExpertStore::Counters counters = store->counters();
    EXPECT_EQ(counters.hits + counters.misses, needed);
    EXPECT_GE(counters.guesses, counters.guesses_used + counters.guesses_wasted);
    EXPECT_GE(counters.guessable, counters.guesses_used);
    EXPECT_LE(counters.bytes_wasted, counters.guesses_wasted * toy_->run_bytes());
    if (slots < PackedToy::kAllExperts) {
      EXPECT_GT(counters.guesses_used, 0) << slots << " slots";
    }
    EXPECT_EQ(counters.bytes_read, counters.reads * toy_->run_bytes());
    if (slots == PackedToy::kAllExperts) {
      EXPECT_EQ(counters.evictions, 0);
    }
  }
}

/// Options whose queue is `*queue`, once the store is made.
ExpertStore::Options HeldOptions(HeldQueue** queue) {
  ExpertStore::Options options;
  options.guesses = ExpertStore::Guesses::kNever;
  options.make_queue =
      [queue](const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
    absl::StatusOr<std::unique_ptr<ReadQueue>> real = ReadQueue::Create(reads);
    if (!real.ok()) return real.status();
    auto held = std::make_unique<HeldQueue>(*std::move(real));
    *queue = held.get();
    return held;
  };
  return options;
}

TEST_F(ExpertStoreTest, WhatIsThereIsGivenFirst) {
  HeldQueue* queue = nullptr;
  const std::unique_ptr<ExpertStore> store = MakeStore(16, HeldOptions(&queue));
  ASSERT_TRUE(VisitAll(*store, 1, Choice({3, 5, 7, 9})).ok());
  const Choice next({1, 5, 9, 11});
  queue->Hold();
  ExpertBatches& batches = store->Visit(1, next.ids, next.weights);
  const auto first = Take(batches, 1, 1);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*first, (std::set<int32_t>{5, 9}));
  EXPECT_EQ(store->counters().hits, 2);
  EXPECT_EQ(store->counters().misses, 6);
  queue->LetGo();
  const auto rest = Take(batches, 1);
  ASSERT_TRUE(rest.ok());
  EXPECT_EQ(*rest, (std::set<int32_t>{1, 11}));
}

// A read that fails after its visit was left has nothing to do with the next one.
TEST_F(ExpertStoreTest, AReadOfAnotherVisitThatFailsIsTriedAgain) {
  bool broken = true;
  fault_ = [&broken](const FileRead& /*read*/) {
    return broken ? absl::DataLossError("the disk says no") : absl::OkStatus();
  };
  HeldQueue* queue = nullptr;
  ExpertStore::Options options = HeldOptions(&queue);
  options.make_queue =
      [this, &queue, make = options.make_queue](
          const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
    absl::StatusOr<std::unique_ptr<ReadQueue>> real = ReadQueue::Create(reads);
    if (!real.ok()) return real.status();
    auto held =
        std::make_unique<HeldQueue>(std::make_unique<UnrulyQueue>(*std::move(real), seed_, fault_));
    queue = held.get();
    return held;
  };
  const std::unique_ptr<ExpertStore> store = MakeStore(16, options);
  const Choice choice({1, 5});
  queue->Hold();
  store->Visit(1, choice.ids, choice.weights);  // and leaves
  broken = false;
  ExpertBatches& again = store->Visit(1, choice.ids, choice.weights);
  queue->LetGo();
  const auto taken = Take(again, 1);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(*taken, choice.needed);
}

TEST_F(ExpertStoreTest, AllThatFitAreReadAtTheStart) {
  const std::unique_ptr<ExpertStore> store = MakeStore(PackedToy::kAllExperts);
  const int64_t total = PackedToy::kAllExperts * toy_->run_bytes();
  ASSERT_EQ(store->warm_bytes(), total);
  int64_t last = -1;
  const auto progress = [&](int64_t done, int64_t of) {
    EXPECT_GE(done, last);
    EXPECT_EQ(of, total);
    last = done;
    return true;
  };
  ASSERT_TRUE(store->Warm(progress).ok());
  EXPECT_EQ(last, total);
  Rng rng(1);
  for (const int layer : {1, 2, 3}) ASSERT_TRUE(VisitAll(*store, layer, Choice(rng, 64)).ok());
  EXPECT_EQ(store->counters().misses, 0);
  EXPECT_EQ(store->counters().reads, PackedToy::kAllExperts);

  const std::unique_ptr<ExpertStore> stopped = MakeStore(PackedToy::kAllExperts);
  EXPECT_EQ(stopped->Warm([](int64_t, int64_t) { return false; }).code(),
            absl::StatusCode::kCancelled);
  ASSERT_TRUE(VisitAll(*stopped, 1, Choice(rng, 64)).ok());

  // One that knows nothing has no idea which to read.
  const std::unique_ptr<ExpertStore> less = MakeStore(PackedToy::kAllExperts - 1);
  EXPECT_EQ(less->warm_bytes(), 0);
  ASSERT_TRUE(less->Warm([](int64_t, int64_t) { return false; }).ok());
  EXPECT_EQ(less->counters().reads, 0);
}

TEST_F(ExpertStoreTest, TheHottestAreReadAtTheStartInTheOrderOfTheirFiles) {
  std::vector<std::pair<std::string, int64_t>> reads;  // path and offset
  fault_ = [&](const FileRead& read) {
    reads.emplace_back(read.file->path(), read.offset);
    return absl::OkStatus();
  };
  // 12 of the cache, 4 through which experts pass.
  const std::unique_ptr<ExpertStore> store = MakeStore(16);
  ASSERT_EQ(store->cache().shape().num_slots, 12);
  // Of 20 that have a score those of even numbers, and four of layer 2, are the hottest.
  std::vector<std::pair<std::string, int64_t>> hottest;
  for (int expert = 0; expert < 16; ++expert) {
    store->cache().SetScore({1, expert}, expert % 2 == 0 ? 100 - expert : -expert);
    if (expert % 2 == 0) hottest.emplace_back(toy_->PathOf(1), toy_->OffsetOf(1, expert));
  }
  for (const int expert : {3, 9, 10, 15}) {
    store->cache().SetScore({2, expert}, 50);
    hottest.emplace_back(toy_->PathOf(2), toy_->OffsetOf(2, expert));
  }
  ASSERT_EQ(store->warm_bytes(), 12 * toy_->run_bytes());
  int64_t last = 0;
  const auto progress = [&](int64_t done, int64_t of) {
    EXPECT_EQ(of, 12 * toy_->run_bytes());
    last = done;
    return true;
  };
  ASSERT_TRUE(store->Warm(progress).ok());
  EXPECT_EQ(last, 12 * toy_->run_bytes());
  EXPECT_EQ(reads, hottest);
  EXPECT_EQ(store->step(), -1);
  ASSERT_TRUE(VisitAll(*store, 1, Choice({0, 2, 6, 14})).ok());
  ASSERT_TRUE(VisitAll(*store, 2, Choice({3, 9, 10, 15})).ok());
  EXPECT_EQ(store->counters().hits, 8);
  EXPECT_EQ(store->counters().misses, 0);
}

// Its steps fail by its name, and all others run.
TEST_F(ExpertStoreTest, AHotExpertThatCannotBeReadIsLeftOutAtTheStart) {
  fault_ = [&](const FileRead& read) {
    return read.offset == toy_->OffsetOf(1, 3) && read.file->path() == toy_->PathOf(1)
               ? absl::DataLossError("the disk says no")
               : absl::OkStatus();
  };
  const std::unique_ptr<ExpertStore> store = MakeStore(16);
  for (const int expert : {1, 3, 5}) store->cache().SetScore({1, expert}, 9);
  for (const int expert : {2, 4}) store->cache().SetScore({2, expert}, 9);
  int64_t last = 0;
  ASSERT_TRUE(store
                  ->Warm([&](int64_t done, int64_t) {
                    last = done;
                    return true;
                  })
                  .ok());
  EXPECT_EQ(last, 5 * toy_->run_bytes());
  ASSERT_TRUE(VisitAll(*store, 1, Choice({1, 5, 7, 9})).ok());
  ASSERT_TRUE(VisitAll(*store, 2, Choice({2, 4, 6, 8})).ok());
  EXPECT_GE(store->counters().hits, 2);
  ExpectLost(VisitAll(*store, 1, Choice({1, 3, 5, 7})), 1, 3, "the disk says no");
}

TEST_F(ExpertStoreTest, AScanKeepsWhatItHas) {
  constexpr int kSlots = 24;  // of which experts pass through 6
  for (const char* policy : {"lru", "lfu", "router"}) {
    for (const int rows : {64, 600}) {
      ExpertStore::Options options = Options();
      options.policy = policy;
      const std::unique_ptr<ExpertStore> store = MakeStore(kSlots, options);
      Rng rng(3);
      constexpr int kPasses = 10;
      for (int pass = 0; pass < kPasses; ++pass) {
        for (const int layer : {1, 2, 3}) {
          ASSERT_TRUE(VisitAll(*store, layer, Choice(rng, rows)).ok());
        }
      }
      const ExpertStore::Counters counters = store->counters();
      // Each pass but the first finds what lies in the cache, or nearly so; without guesses it
      // would read all others.
      EXPECT_GE(counters.hits, (kPasses - 1) * 15) << policy;
      EXPECT_LE(counters.reads, kPasses * (PackedToy::kAllExperts - 15) + kSlots) << policy;
      EXPECT_GT(counters.guesses_used, kPasses) << policy;
      EXPECT_LE(counters.guesses_wasted, kPasses) << policy;
    }
  }
}

TEST_F(ExpertStoreTest, WhatWasGuessedRightIsReadOnceAndStays) {
  for (const bool cache_is_full : {false, true}) {
    ExpertStore::Options options = Options();
    options.guesses = ExpertStore::Guesses::kAlways;
    options.policy = "lru";
    const std::unique_ptr<ExpertStore> store = MakeStore(16, options);  // 12 of them the cache's
    if (cache_is_full) {
      for (const int e : {0, 4, 8}) {
        ASSERT_TRUE(VisitAll(*store, 3, Choice({e, e + 1, e + 2, e + 3})).ok());
      }
    }
    const ExpertStore::Counters before = store->counters();
    const Choice first({0, 1, 2, 3});
    ExpertBatches& batches = store->Visit(1, first.ids, first.weights);
    ASSERT_TRUE(Guess(*store, 2, {4, 5, 6, 7}));
    ASSERT_TRUE(Take(batches, 1).ok());
    ASSERT_TRUE(VisitAll(*store, 2, Choice({5, 6, 7, 8})).ok());
    ASSERT_TRUE(VisitAll(*store, 1, first).ok());
    ASSERT_TRUE(VisitAll(*store, 2, Choice({5, 6, 7, 8})).ok());
    const ExpertStore::Counters counters = store->counters();
    EXPECT_EQ(counters.guesses, 4);
    EXPECT_EQ(counters.guesses_used, 3);
    EXPECT_EQ(counters.guessable, 4);  // nobody guessed 8
    // What is in the way is dropped; in a cache with room it stays, and may be used yet.
    EXPECT_EQ(counters.guesses_wasted, cache_is_full ? 1 : 0);
    EXPECT_LE(counters.reads - before.reads, 9);  // the wrong one may have been taken back
    EXPECT_GE(counters.reads - before.reads, 8);
    EXPECT_EQ(counters.hits - before.hits + counters.misses - before.misses, 16);
    EXPECT_GE(counters.hits - before.hits, 8) << "what a guess brought did not stay";
  }
}

TEST_F(ExpertStoreTest, GuessesAreReadAfterWhatIsNeededAndPutOutNothing) {
  std::vector<std::pair<std::string, int64_t>> reads;
  fault_ = [&](const FileRead& read) {
    reads.emplace_back(read.file->path(), read.offset);
    return absl::OkStatus();
  };
  const auto place = [](int layer, int expert) {
    return std::pair(toy_->PathOf(layer), toy_->OffsetOf(layer, expert));
  };
  ExpertStore::Options options = Options();
  options.guesses = ExpertStore::Guesses::kAlways;
  const std::unique_ptr<ExpertStore> store = MakeStore(8, options);  // 6 of them the cache's
  ASSERT_TRUE(VisitAll(*store, 3, Choice({0, 1, 2, 3})).ok());
  ASSERT_TRUE(VisitAll(*store, 3, Choice({2, 3, 4, 5})).ok());
  reads.clear();
  const int64_t evictions = store->counters().evictions;
  const Choice needed({9, 10, 11, 12});
  ExpertBatches& batches = store->Visit(1, needed.ids, needed.weights);
  ASSERT_TRUE(Guess(*store, 2, {4, 5, 6, 7}));
  ASSERT_TRUE(Take(batches, 1).ok());
  ASSERT_EQ(reads.size(), 6u);  // guesses have two slots
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(reads[i], i < 4 ? place(1, 9 + static_cast<int>(i)) : place(2, static_cast<int>(i)))
        << i;
  }
  EXPECT_EQ(store->counters().evictions, evictions + 4);
}

TEST_F(ExpertStoreTest, GuessesAreWantedByTurnsUntilTheyAreSeenToPay) {
  const std::unique_ptr<ExpertStore> store = MakeStore(8);
  Rng rng(1);
  for (int step = 0; step < 10; ++step) {
    for (const int layer : {1, 2, 3}) {
      // Each visit brings something in: the last one's experts are others.
      const int first = (step * 4 + layer) % 12;
      const Choice choice({first, first + 1, first + 2, first + 3});
      EXPECT_EQ(store->WantsGuess(layer), step % 2 == 1) << step;
      ASSERT_TRUE(VisitAll(*store, layer, choice).ok());
    }
  }
}

TEST_F(ExpertStoreTest, GuessesAreNotWantedWhereTheyAreOfNoUse) {
  ExpertStore::Options options = Options();
  options.guesses = ExpertStore::Guesses::kNever;
  EXPECT_FALSE(MakeStore(16, options)->WantsGuess(1));
  options.guesses = ExpertStore::Guesses::kAlways;
  EXPECT_FALSE(MakeStore(PackedToy::kAllExperts, options)->WantsGuess(1));
  // In a scan the store knows what comes.
  const std::unique_ptr<ExpertStore> store = MakeStore(16, options);
  EXPECT_TRUE(store->WantsGuess(1));
  Rng rng(1);
  ASSERT_TRUE(VisitAll(*store, 1, Choice(rng, 64)).ok());
  EXPECT_FALSE(store->WantsGuess(2));
  EXPECT_TRUE(store->WantsGuess(1));  // of the next step
}

TEST_F(ExpertStoreTest, AReadThatFailsFailsItsVisitOnly) {
  bool broken = true;
  fault_ = [&broken](const FileRead& read) {
    return broken && IsOf(read, 1, 6) ? absl::DataLossError("the disk says no") : absl::OkStatus();
  };
  for (const int slots : {4, 9, 30, PackedToy::kAllExperts}) {
    for (const int rows : {1, 64, 600}) {
      broken = true;
      const std::unique_ptr<ExpertStore> store = MakeStore(slots);
      Rng rng(5);
      Choice choice(rng, rows);
      choice.needed.insert({0, 3, 6, 7});
      choice.ids.insert(choice.ids.end(), {0, 3, 6, 7});
      choice.weights.resize(choice.ids.size(), 1);
      for (int turn = 0; turn < 3; ++turn) {
        ExpectLost(VisitAll(*store, 1, choice), 1, 6, "the disk says no");
        ASSERT_TRUE(VisitAll(*store, 1, Choice({0, 3, 5, 7})).ok());
        ASSERT_TRUE(VisitAll(*store, 2, Choice(rng, rows)).ok());
      }
      broken = false;
      ASSERT_TRUE(VisitAll(*store, 1, choice).ok()) << slots << " slots, " << rows << " rows";
    }
  }
}

TEST_F(ExpertStoreTest, ReadsThatFailNowAndThenDoNoHarm) {
  Rng faults(7);
  fault_ = [&faults](const FileRead& /*read*/) {
    return faults() % 20 == 0 ? absl::DataLossError("now and then") : absl::OkStatus();
  };
  Rng rng(8);
  int failed = 0;
  for (const int slots : {4, 7, 17, 40}) {
    const std::unique_ptr<ExpertStore> store = MakeStore(slots);
    for (int turn = 0; turn < 200; ++turn) {
      const int rows = turn % 50 == 7 ? 600 : 1 << RandomInt(rng, 0, 6);
      const absl::Status status = VisitAll(*store, 1 + turn % 3, Choice(rng, rows));
      if (!status.ok()) {
        ++failed;
        EXPECT_THAT(std::string(status.message()), HasSubstr("now and then"));
      }
      ASSERT_FALSE(HasFailure()) << slots << " slots, turn " << turn;
    }
  }
  EXPECT_GT(failed, 20);
}

TEST_F(ExpertStoreTest, NothingIsGivenOfWrongBytes) {
  const std::unique_ptr<ExpertStore> store = MakeStore(8);
  toy_->Flip(2, 3);
  const Choice choice({1, 2, 3, 4});
  ExpectLost(VisitAll(*store, 2, choice), 2, 3, "hash");
  ExpectLost(VisitAll(*store, 2, choice), 2, 3, "hash");
  Rng rng(1);
  const Choice many(rng, 600);
  ExpectLost(VisitAll(*store, 2, many), 2, 3, "hash");
  toy_->Flip(2, 3);
  EXPECT_TRUE(VisitAll(*store, 2, choice).ok());
  EXPECT_TRUE(VisitAll(*store, 2, many).ok());
}

TEST_F(ExpertStoreTest, ReadsAfterTheFirstAreComparedWhereAsked) {
  for (const auto verify :
       {ExpertStore::Verify::kNever, ExpertStore::Verify::kFirst, ExpertStore::Verify::kEvery}) {
    ExpertStore::Options options = Options();
    options.policy = "lru";
    options.verify = verify;
    const std::unique_ptr<ExpertStore> store = MakeStore(8, options);
    const auto visit = [&](int layer, const std::vector<int32_t>& row) {
      const Choice choice(row);
      ExpertBatches& batches = store->Visit(layer, choice.ids, choice.weights);
      while (true) {
        const auto batch = batches.Next();
        if (!batch.ok() || batch->empty()) return batch.status();
      }
    };
    ASSERT_TRUE(visit(1, {1, 2, 3, 4}).ok());
    ASSERT_TRUE(visit(1, {5, 6, 7, 8}).ok());
    ASSERT_TRUE(visit(1, {9, 10, 11, 12}).ok());  // 1 to 4 are out
    toy_->Flip(1, 2);
    EXPECT_EQ(visit(1, {1, 2, 3, 4}).ok(), verify != ExpertStore::Verify::kEvery);
    toy_->Flip(2, 2);
    EXPECT_EQ(visit(2, {1, 2, 3, 4}).ok(), verify == ExpertStore::Verify::kNever);
    toy_->Flip(1, 2);
    toy_->Flip(2, 2);
  }
}

TEST_F(ExpertStoreTest, MayEndWhileItReads) {
  Rng rng(1);
  for (int turn = 0; turn < 20; ++turn) {
    const std::unique_ptr<ExpertStore> store = MakeStore(4 + 2 * turn);
    const Choice choice(rng, 64);
    ExpertBatches& batches = store->Visit(1, choice.ids, choice.weights);
    ASSERT_TRUE(Take(batches, 1, turn % 3).ok());
  }
}

TEST_F(ExpertStoreTest, RefusesABudgetThatHoldsNoTokensExperts) {
  const auto refused = ExpertStore::Create(toy_->config(), toy_->whole(), toy_->model(),
                                           PackedToy::kChosen * toy_->run_bytes() - 1, Options());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr(absl::StrCat(PackedToy::kChosen * toy_->run_bytes())));
}

TEST_F(ExpertStoreTest, RefusesWhatIsNoPackOfThisMachine) {
  class Remote : public TensorSource {
   public:
    const TensorInfo* Find(absl::string_view) const override { return nullptr; }
    absl::Status ReadPart(absl::string_view, int64_t, absl::Span<std::byte>) const override {
      return absl::UnavailableError("");
    }
  };
  const auto refused =
      ExpertStore::Create(toy_->config(), toy_->whole(), Remote(), int64_t{1} << 30, Options());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("caravan pack"));
}

TEST(ExpertStoreFileTest, ATruncatedFileIsNamed) {
  const PackedToy toy;
  const std::string path = toy.PathOf(2);
  const int64_t budget = 8 * toy.run_bytes();
  const auto store = ExpertStore::Create(toy.config(), toy.whole(), toy.model(), budget, {});
  ASSERT_TRUE(store.ok()) << store.status();
  std::filesystem::resize_file(path, static_cast<uintmax_t>(toy.OffsetOf(2, 9)));
  const auto visit = [&](const std::vector<int32_t>& row) {
    const Choice choice(row);
    ExpertBatches& batches = (*store)->Visit(2, choice.ids, choice.weights);
    while (true) {
      const auto batch = batches.Next();
      if (!batch.ok() || batch->empty()) return batch.status();
    }
  };
  EXPECT_TRUE(visit({0, 1, 2, 8}).ok());
  const absl::Status status = visit({0, 1, 2, 9});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  EXPECT_TRUE(visit({0, 1, 2, 8}).ok());

  const auto refused = ExpertStore::Create(toy.config(), toy.whole(), toy.model(), budget, {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(path));
}

}  // namespace
}  // namespace caravan
