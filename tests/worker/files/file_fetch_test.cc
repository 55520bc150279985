// Files from sources that are slow, wrong, short or dying.

#include "worker/files/file_fetch.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/file.h"
#include "base/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/files/fake_file_source.h"
#include "tests/worker/files/made_file.h"
#include "worker/files/file_pieces.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class FileFetchTest : public ::testing::Test {
 protected:
  FileFetchTest() {
    // Rests before, between and behind, of several pieces.
    made_.push_back(MakeFile("embedding.bin", 3 * kPieceBytes + 1000));
    made_.push_back(MakeFile("layer-000.bin", 5000));
    made_.push_back(MakeFile("layer-001.bin", 1 << 20, 10, 3 << 20, 777));
    made_.push_back(MakeFile("layer-002.bin", 4096, 40, 4096));
    for (const MadeFile& file : made_) {
      wanted_.push_back(file.packed);
      total_ += file.packed.bytes;
    }
    options_.retry_delay = absl::Milliseconds(1);
  }

  FakeFileSource& AddSource(const std::string& name) {
    sources_.push_back(std::make_unique<FakeFileSource>(name));
    for (const MadeFile& file : made_) sources_.back()->Give(file);
    return *sources_.back();
  }

  absl::StatusOr<FileFetchResult> Fetch() {
    std::vector<FileSource*> sources;
    for (const auto& source : sources_) sources.push_back(source.get());
    ::testing::internal::CaptureStderr();
    absl::StatusOr<FileFetchResult> result = FetchFiles(dir_.path(), wanted_, sources, options_);
    log_ = ::testing::internal::GetCapturedStderr();
    return result;
  }
  void ExpectAllThere() {
    for (const MadeFile& file : made_) {
      EXPECT_TRUE(ReadFile(dir_.File(file.packed.name), 1 << 28).value_or("") == file.bytes)
          << file.packed.name;
      EXPECT_FALSE(FileExists(dir_.File(file.packed.name + ".part")));
      EXPECT_FALSE(FileExists(dir_.File(file.packed.name + ".have")));
    }
  }
  void ExpectFetchesAll() {
    const absl::StatusOr<FileFetchResult> result = Fetch();
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectAllThere();
  }

  const TempDir dir_;
  std::vector<MadeFile> made_;
  std::vector<PackedFile> wanted_;
  int64_t total_ = 0;
  std::vector<std::unique_ptr<FakeFileSource>> sources_;
  FileFetchOptions options_;
  std::string log_;  // of the last fetch
};

TEST_F(FileFetchTest, BringsAllAndSaysHowFarItIs) {
  AddSource("coordinator");
  std::vector<int64_t> done_bytes;
  options_.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, total_);
    done_bytes.push_back(done);
    return true;
  };
  const absl::StatusOr<FileFetchResult> result = Fetch();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAllThere();
  EXPECT_EQ(result->files, 4);
  EXPECT_EQ(result->bytes, total_);
  EXPECT_EQ(result->kept_bytes, 0);
  EXPECT_EQ(result->bytes_from.at("coordinator"), total_);
  EXPECT_TRUE(std::is_sorted(done_bytes.begin(), done_bytes.end()));
  ASSERT_FALSE(done_bytes.empty());
  EXPECT_EQ(done_bytes.back(), total_);
}

TEST_F(FileFetchTest, WhatIsThereIsNotAskedFor) {
  FakeFileSource& source = AddSource("coordinator");
  ExpectFetchesAll();
  const int64_t asked = source.bytes_asked();
  const absl::StatusOr<FileFetchResult> again = Fetch();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->bytes, 0);
  EXPECT_EQ(again->files, 0);
  EXPECT_EQ(again->kept_bytes, total_);
  EXPECT_EQ(source.bytes_asked(), asked);
  EXPECT_EQ(source.lists(), 1);
}

TEST_F(FileFetchTest, SeveralSourcesShareTheWorkWhetherTheyHaveAllOrNot) {
  FakeFileSource& coordinator = AddSource("coordinator");
  sources_.push_back(std::make_unique<FakeFileSource>("worker 1"));
  FakeFileSource& worker = *sources_.back();
  worker.Give(made_[0]);
  sources_.push_back(std::make_unique<FakeFileSource>("worker 2"));  // has nothing
  // Each gives its first piece only when the other has been asked for one too.
  std::promise<void> asked[2];
  std::shared_future<void> was_asked[2] = {asked[0].get_future().share(),
                                           asked[1].get_future().share()};
  std::atomic<bool> first[2] = {true, true};
  const auto wait_for = [&](int self) {
    return [&, self](const std::string&, int64_t, std::string&, const std::stop_token&) {
      if (first[self].exchange(false)) asked[self].set_value();
      was_asked[1 - self].wait();
      return absl::OkStatus();
    };
  };
  coordinator.set_on_read(wait_for(0));
  worker.set_on_read(wait_for(1));
  const absl::StatusOr<FileFetchResult> result = Fetch();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAllThere();
  EXPECT_GT(result->bytes_from.at("worker 1"), 0);
  EXPECT_GT(result->bytes_from.at("coordinator"), 0);
  EXPECT_EQ(result->bytes, total_);
}

TEST_F(FileFetchTest, WhatABusySourceDoesNotGiveAnIdleOneGives) {
  AddSource("coordinator");
  FakeFileSource& worker = AddSource("worker 1");
  // The first time a part, less than any piece, then nothing for an hour.
  constexpr size_t kPart = 100;
  std::promise<void> asked;
  std::atomic<bool> first = true;
  worker.set_busy([&](std::string& sent) {
    sent.resize(first.exchange(false) ? kPart : 0);
    if (!sent.empty()) asked.set_value();
    return absl::Hours(1);
  });
  const std::shared_future<void> was_asked = asked.get_future().share();
  sources_[0]->set_on_read([&](const std::string&, int64_t, std::string&, const std::stop_token&) {
    was_asked.wait();
    return absl::OkStatus();
  });
  const absl::StatusOr<FileFetchResult> result = Fetch();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAllThere();
  EXPECT_EQ(result->bytes_from.at("coordinator"), total_);
  EXPECT_FALSE(result->bytes_from.contains("worker 1"));
}

TEST_F(FileFetchTest, BusySourcesGiveSideBySide) {
  // Each gives nothing until the other has been told to come again, then bit by bit.
  std::atomic<int> waits[2] = {0, 0};
  for (const int self : {0, 1}) {
    AddSource(absl::StrCat("worker ", self)).set_busy([&waits, self](std::string& sent) {
      ++waits[self];
      constexpr size_t kBit = size_t{1} << 20;
      if (waits[1 - self] == 0) {
        sent.clear();
      } else if (sent.size() > kBit) {
        sent.resize(kBit);
      } else {
        return absl::ZeroDuration();
      }
      return absl::Milliseconds(1);
    });
  }
  const absl::StatusOr<FileFetchResult> result = Fetch();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAllThere();
  EXPECT_EQ(result->bytes, total_);
  EXPECT_GT(result->bytes_from.at("worker 0"), 0);
  EXPECT_GT(result->bytes_from.at("worker 1"), 0);
}

TEST_F(FileFetchTest, OfAHundredSourcesTheLastMayBeTheOneThatHasAll) {
  for (int i = 1; i < 100; ++i) {
    sources_.push_back(std::make_unique<FakeFileSource>(absl::StrCat("worker ", i)));
  }
  AddSource("worker 100");
  const absl::StatusOr<FileFetchResult> result = Fetch();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAllThere();
  EXPECT_EQ(result->bytes_from.at("worker 100"), total_);
}

TEST_F(FileFetchTest, AWrongExpertComesFromAnotherSourceAndItsSourceIsNamed) {
  FakeFileSource& liar = AddSource("worker 1 (liar)");
  AddSource("coordinator");
  const int64_t first_expert = made_[2].packed.experts->offset;
  // The other source holds back until the liar has been asked: it has no more than two of the five
  // pieces of experts under way.
  std::promise<void> lied;
  std::atomic<bool> first = true;
  liar.set_on_read(
      [&](const std::string& file, int64_t offset, std::string& sent, const std::stop_token&) {
        if (file == "layer-001.bin" && offset >= first_expert) {
          sent[17] = static_cast<char>(sent[17] ^ 1);
          if (first.exchange(false)) lied.set_value();
        }
        return absl::OkStatus();
      });
  const std::shared_future<void> has_lied = lied.get_future().share();
  sources_[1]->set_on_read(
      [&](const std::string& file, int64_t offset, std::string&, const std::stop_token&) {
        if (file == "layer-001.bin" && offset >= first_expert) has_lied.wait();
        return absl::OkStatus();
      });
  ExpectFetchesAll();
  EXPECT_THAT(log_, HasSubstr("bad_piece file=\"layer-001.bin, bytes"));
  EXPECT_THAT(log_, HasSubstr("from=\"worker 1 (liar)\" why=\"expert "));
  EXPECT_THAT(log_, HasSubstr("is not what the manifest says"));
  EXPECT_THAT(log_, Not(HasSubstr("from=coordinator why")));
}

TEST_F(FileFetchTest, AWrongRestComesAgainFromOthersAndItsSourceIsNamed) {
  FakeFileSource& liar = AddSource("liar");
  FakeFileSource& honest = AddSource("honest");
  // As above: of four pieces.
  std::promise<void> lied;
  std::atomic<bool> first = true;
  liar.set_on_read(
      [&](const std::string& file, int64_t, std::string& sent, const std::stop_token&) {
        if (file == "embedding.bin") {
          sent[0] = static_cast<char>(sent[0] ^ 1);
          if (first.exchange(false)) lied.set_value();
        }
        return absl::OkStatus();
      });
  const std::shared_future<void> has_lied = lied.get_future().share();
  honest.set_on_read([&](const std::string& file, int64_t, std::string&, const std::stop_token&) {
    if (file == "embedding.bin") has_lied.wait();
    return absl::OkStatus();
  });
  ExpectFetchesAll();
  EXPECT_THAT(log_, HasSubstr("file_hash_wrong file=embedding.bin"));
  EXPECT_THAT(log_, HasSubstr("bad_piece file=\"embedding.bin, bytes"));
  EXPECT_THAT(log_, HasSubstr("from=liar why=\"the file's hash was wrong with it\""));
  EXPECT_THAT(log_, Not(HasSubstr("from=honest why")));
}

TEST_F(FileFetchTest, ARestThatNobodyHasRightIsDataLoss) {
  for (const char* name : {"a", "b"}) {
    AddSource(name).set_on_read(
        [](const std::string& file, int64_t, std::string& sent, const std::stop_token&) {
          if (file == "layer-000.bin") sent[1] = static_cast<char>(sent[1] ^ 1);
          return absl::OkStatus();
        });
  }
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer-000.bin: nobody has the bytes"));
  EXPECT_FALSE(FileExists(dir_.File("layer-000.bin")));
}

TEST_F(FileFetchTest, TooFewAndTooManyBytesAreAsGoodAsWrongOnes) {
  for (const bool more : {false, true}) {
    FakeFileSource& odd = AddSource(absl::StrCat("odd ", more));
    odd.set_on_read([more](const std::string&, int64_t, std::string& sent, const std::stop_token&) {
      if (more) {
        sent += '!';
      } else {
        sent.pop_back();
      }
      return absl::OkStatus();
    });
  }
  AddSource("honest");
  ExpectFetchesAll();
  EXPECT_THAT(log_, HasSubstr("it sent more than was asked for"));
  EXPECT_THAT(log_, HasSubstr("bytes\""));
}

TEST_F(FileFetchTest, ADyingSourceIsGivenUpAndTheOthersGoOn) {
  AddSource("coordinator");
  FakeFileSource& dying = AddSource("dying");
  // One at a time, so that failures follow each other; the coordinator holds back until the third.
  options_.streams_per_source = 1;
  std::atomic<int> reads = 0;
  std::promise<void> died;
  dying.set_on_read([&](const std::string&, int64_t, std::string&, const std::stop_token&) {
    const int read = ++reads;
    if (read == 5) died.set_value();
    return read <= 2 ? absl::OkStatus() : absl::UnavailableError("connection reset");
  });
  const std::shared_future<void> has_died = died.get_future().share();
  sources_[0]->set_on_read([&](const std::string&, int64_t, std::string&, const std::stop_token&) {
    has_died.wait();
    return absl::OkStatus();
  });
  ExpectFetchesAll();
  EXPECT_EQ(reads, 5);
  EXPECT_THAT(log_, HasSubstr("file_source_lost source=dying"));
}

TEST_F(FileFetchTest, ARestDoesNotComeFromASourceThatLacksAPieceOfIt) {
  // All of embedding.bin comes from `a` but for one piece, which it cannot read, and `b` spoils.
  made_.resize(1);
  wanted_.resize(1);
  FakeFileSource& a = AddSource("a");
  FakeFileSource& b = AddSource("b");
  FakeFileSource& honest = AddSource("honest");
  options_.streams_per_source = 1;
  const int64_t lacking = SplitIntoPieces(made_[0].packed)[2].begin;
  std::promise<void> failed;
  std::promise<void> lied;
  std::atomic<bool> first_failure = true;
  std::atomic<bool> first_lie = true;
  const std::shared_future<void> has_failed = failed.get_future().share();
  const std::shared_future<void> has_lied = lied.get_future().share();
  a.set_on_read([&](const std::string&, int64_t offset, std::string&, const std::stop_token&) {
    if (offset != lacking) return absl::OkStatus();
    if (first_failure.exchange(false)) failed.set_value();
    return absl::DataLossError("a bad sector");
  });
  // The others come when it has failed, the honest one when the liar has lied.
  b.set_before_list([&] { has_failed.wait(); });
  honest.set_before_list([&] { has_lied.wait(); });
  b.set_on_read([&](const std::string&, int64_t, std::string& sent, const std::stop_token&) {
    sent[0] = static_cast<char>(sent[0] ^ 1);
    if (first_lie.exchange(false)) lied.set_value();
    return absl::OkStatus();
  });
  ExpectFetchesAll();
  EXPECT_THAT(log_, HasSubstr("file_hash_wrong file=embedding.bin"));
}

TEST_F(FileFetchTest, WhateverIsWrongWithASourceItIsUnavailable) {
  FakeFileSource& source = AddSource("coordinator");
  for (const absl::Status& error :
       {absl::NotFoundError("gone"), absl::PermissionDeniedError("who are you"),
        absl::DataLossError("a bad sector"), absl::ResourceExhaustedError("too large")}) {
    source.set_on_read([&error](const std::string&, int64_t, std::string&, const std::stop_token&) {
      return error;
    });
    const absl::Status status = Fetch().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(error.message())));
  }
  source.set_list_error(absl::PermissionDeniedError("who are you"));
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(FileFetchTest, AnExpertThatNobodyHasRightIsDataLossAndElseItMayComeYet) {
  const int64_t first_expert = made_[2].packed.experts->offset;
  const auto lie = [&](const std::string& file, int64_t offset, std::string& sent,
                       const std::stop_token&) {
    if (file == "layer-001.bin" && offset >= first_expert) {
      sent[17] = static_cast<char>(sent[17] ^ 1);
    }
    return absl::OkStatus();
  };
  AddSource("a").set_on_read(lie);
  AddSource("b").set_on_read(lie);
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;

  AddSource("away").set_list_error(absl::UnavailableError("no answer"));
  const absl::Status with_another = Fetch().status();
  EXPECT_EQ(with_another.code(), absl::StatusCode::kUnavailable) << with_another;
}

TEST_F(FileFetchTest, AFileOfExpertsAloneWhoseOwnHashIsAnotherIsDataLoss) {
  made_ = {MakeFile("layer-003.bin", 0, 3, 4096)};
  made_[0].packed.hash = HashOfText("another");
  wanted_ = {made_[0].packed};
  AddSource("coordinator");
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer-003.bin"));
}

TEST_F(FileFetchTest, BeyondTheBoundSourcesWaitForEachOther) {
  for (int i = 0; i < 6; ++i) AddSource(absl::StrCat("worker ", i));
  options_.max_streams = 2;
  Mutex mu;
  int now = 0;
  int most = 0;
  for (const auto& source : sources_) {
    source->set_on_read([&](const std::string&, int64_t, std::string&, const std::stop_token&) {
      MutexLock lock(&mu);
      most = std::max(most, ++now);
      return absl::OkStatus();
    });
    source->set_on_read_done([&] {
      MutexLock lock(&mu);
      --now;
    });
  }
  ExpectFetchesAll();
  EXPECT_LE(most, 2);
}

TEST_F(FileFetchTest, WithoutAnybodyLeftItIsUnavailableAndTheNextRunGoesOn) {
  FakeFileSource& source = AddSource("coordinator");
  std::atomic<int64_t> given = 0;
  source.set_on_read([&](const std::string&, int64_t, std::string& sent, const std::stop_token&) {
    if (given > total_ / 2) return absl::UnavailableError("connection reset");
    given += static_cast<int64_t>(sent.size());
    return absl::OkStatus();
  });
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("connection reset"));

  source.set_on_read(nullptr);
  const absl::StatusOr<FileFetchResult> rest = Fetch();
  ASSERT_TRUE(rest.ok()) << rest.status();
  ExpectAllThere();
  EXPECT_LE(rest->bytes, total_ - given);
  EXPECT_GT(rest->bytes, 0);
}

TEST_F(FileFetchTest, ASourceThatDoesNotAnswerIsDoneWithout) {
  FakeFileSource& silent = AddSource("silent");
  silent.set_list_error(absl::DeadlineExceededError("no answer"));
  AddSource("another by now").set_list_error(absl::AbortedError("another process answers"));
  // Holds back until the other was asked for the last time.
  std::promise<void> given_up;
  silent.set_before_list([&] {
    if (silent.lists() == 3) given_up.set_value();
  });
  const std::shared_future<void> is_given_up = given_up.get_future().share();
  AddSource("coordinator")
      .set_on_read([&](const std::string&, int64_t, std::string&, const std::stop_token&) {
        is_given_up.wait();
        return absl::OkStatus();
      });
  ExpectFetchesAll();
  EXPECT_EQ(sources_[0]->lists(), 3);
  EXPECT_EQ(sources_[1]->lists(), 1);
}

TEST_F(FileFetchTest, WhatNobodyHasIsUnavailableByName) {
  sources_.push_back(std::make_unique<FakeFileSource>("coordinator"));
  for (size_t i = 1; i < made_.size(); ++i) sources_[0]->Give(made_[i]);
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("embedding.bin"));
}

TEST_F(FileFetchTest, ARecordThatLiesIsFoundOutByTheHashes) {
  FakeFileSource& source = AddSource("coordinator");
  // As if power had been lost before the data was on the disk: zeros where bytes are noted.
  for (const PackedFile& file : wanted_) {
    dir_.Write(file.name + ".part", std::string(static_cast<size_t>(file.bytes), '\0'));
    dir_.Write(file.name + ".have", absl::StrCat("have 0 ", file.bytes, "\n"));
  }
  ExpectFetchesAll();
  EXPECT_THAT(log_, HasSubstr("file_read_back_wrong"));
  EXPECT_THAT(log_, HasSubstr("from=\"an earlier run\""));
  EXPECT_EQ(source.bytes_asked(), total_);
}

TEST_F(FileFetchTest, WhatAnEarlierRunWroteRightStays) {
  FakeFileSource& source = AddSource("coordinator");
  const MadeFile& file = made_[2];
  dir_.Write(file.packed.name + ".part", file.bytes);
  const PackedExperts& experts = *file.packed.experts;
  const int64_t end = experts.offset + 4 * experts.stride;
  dir_.Write(file.packed.name + ".have", absl::StrCat("have 0 ", end, "\n"));
  const absl::StatusOr<FileFetchResult> result = Fetch();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAllThere();
  EXPECT_EQ(result->kept_bytes, end);
  EXPECT_EQ(source.bytes_asked(), total_ - end);
}

TEST_F(FileFetchTest, AStopEndsReadsThatWait) {
  FakeFileSource& source = AddSource("coordinator");
  BoundedQueue<int> entered(100);
  source.set_on_read([&](const std::string&, int64_t, std::string&, const std::stop_token& stop) {
    entered.Push(0);
    std::promise<void> stopped;
    const std::stop_callback wake(stop, [&] { stopped.set_value(); });
    stopped.get_future().wait();
    return absl::CancelledError("stopped");
  });
  std::stop_source stop;
  options_.stop = stop.get_token();
  auto fetching = std::async(std::launch::async, [&] { return Fetch().status(); });
  entered.Pop();
  stop.request_stop();
  EXPECT_EQ(fetching.get().code(), absl::StatusCode::kCancelled);
}

TEST_F(FileFetchTest, AStopEndsTheReadingBackOfWhatAnEarlierRunBrought) {
  AddSource("coordinator");
  for (const MadeFile& file : made_) {
    dir_.Write(file.packed.name + ".part", file.bytes);
    dir_.Write(file.packed.name + ".have", absl::StrCat("have 0 ", file.packed.bytes, "\n"));
  }
  std::stop_source stop;
  stop.request_stop();
  options_.stop = stop.get_token();
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kCancelled);
  for (const MadeFile& file : made_) {
    EXPECT_FALSE(FileExists(dir_.File(file.packed.name))) << file.packed.name << " was read";
  }

  // Without one they become whole, and how far their reading is shows.
  options_.stop = {};
  int64_t last = -1;
  options_.progress = [&](int64_t done, int64_t total) {
    EXPECT_GE(done, last);
    EXPECT_EQ(total, total_);
    last = done;
    return true;
  };
  const absl::StatusOr<FileFetchResult> result = Fetch();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAllThere();
  EXPECT_EQ(last, total_);
  EXPECT_EQ(result->bytes, 0);
  EXPECT_EQ(result->kept_bytes, total_);
}

TEST_F(FileFetchTest, ProgressThatSaysNoEndsIt) {
  AddSource("coordinator");
  options_.progress = [](int64_t done, int64_t) { return done == 0; };
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace caravan
