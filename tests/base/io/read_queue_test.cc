// Both engines on real files.

#include "base/io/read_queue.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/buffer.h"
#include "base/int_math.h"
#include "base/mutex.h"
#include "base/peak_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/event_counter.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kBlock = kDirectAlignment;
constexpr auto kNeeded = ReadPriority::kNeeded;
constexpr auto kGuess = ReadPriority::kGuess;

/// What a file holds: each 8 bytes tell their place.
std::string Contents(int64_t bytes) {
  std::string contents(static_cast<size_t>(RoundUp<int64_t>(bytes, 8)), '\0');
  for (size_t at = 0; at < contents.size(); at += 8) {
    const uint64_t word = at * 0x9e3779b97f4a7c15 + 1;
    std::memcpy(&contents[at], &word, sizeof(word));
  }
  contents.resize(static_cast<size_t>(bytes));
  return contents;
}

/// Lets threads wait until it is opened.
class Gate {
 public:
  void Open() { counter_.Add(); }
  void Pass() { EXPECT_TRUE(counter_.Reaches(1)); }

 private:
  EventCounter counter_;
};

/// The parameter: whether by io_uring.
class ReadQueueTest : public ::testing::TestWithParam<bool> {
 protected:
  static ReadQueue::Options OptionsOf(int64_t piece_blocks, int depth) {
    ReadQueue::Options options;
    options.piece_bytes = piece_blocks * kBlock;
    options.depth = depth;
    options.uring = GetParam();
    return options;
  }

  std::unique_ptr<ReadQueue> Make(const ReadQueue::Options& options) {
    std::unique_ptr<ReadQueue> queue = *ReadQueue::Create(options);
    EXPECT_TRUE(GetParam() || queue->Name() == "threads");
    return queue;
  }

  void MakeFile(int64_t bytes) {
    contents_ = Contents(bytes);
    path_ = dir_.Write("file", contents_);
    file_ = *DirectFile::Open(path_);
    memory_ = *Buffer::Allocate(RoundUp(bytes, kBlock));
  }

  /// Reads to where the same bytes lie in memory_.
  FileRead Blocks(int64_t begin, int64_t count) const {
    return {file_.get(),
            begin * kBlock,
            {memory_.data() + begin * kBlock, static_cast<size_t>(count * kBlock)}};
  }
  bool Holds(const FileRead& read) const {
    const size_t begin = static_cast<size_t>(read.offset);
    const size_t size = std::min(read.out.size(), contents_.size() - begin);
    return std::memcmp(read.out.data(), contents_.data() + begin, size) == 0;
  }

  TempDir dir_;
  std::string contents_;
  std::string path_;
  std::unique_ptr<DirectFile> file_;
  Buffer memory_;
};

TEST_P(ReadQueueTest, ReadsAWholeFile) {
  MakeFile(3'000'001);
  EventCounter done;
  const auto queue = Make(OptionsOf(16, 4));
  const FileRead all = Blocks(0, memory_.size() / kBlock);
  queue->Submit(all, kNeeded, [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Add();
  });
  ASSERT_TRUE(done.Reaches(1));
  EXPECT_TRUE(Holds(all));
  const ReadQueue::Counters counters = queue->counters();
  EXPECT_EQ(counters.reads, 1);
  EXPECT_EQ(counters.bytes, 3'000'001);
  EXPECT_EQ(counters.retries, 0);
  EXPECT_GT(counters.busy, absl::ZeroDuration());
}

TEST_P(ReadQueueTest, ServesManyThreadsAtOnce) {
  constexpr int kThreads = 4;
  constexpr int kReads = 60;
  constexpr int64_t kBlocks = 200;
  MakeFile(kBlocks * kBlock);
  for (const bool registered : {false, true}) {
    Buffer targets = *Buffer::Allocate(kThreads * kReads * 16 * kBlock);
    ReadQueue::Options options = OptionsOf(3, 8);
    // Half of it: the other reads go elsewhere.
    if (registered) {
      options.memory = {targets.data(), static_cast<size_t>(targets.size() / 2)};
    }
    const auto queue = Make(options);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        std::mt19937 random(static_cast<unsigned>(thread));
        EventCounter done;
        std::vector<FileRead> reads;
        int taken_back = 0;
        for (int i = 0; i < kReads; ++i) {
          const int64_t count = 1 + random() % 16;
          FileRead read = Blocks(static_cast<int64_t>(random() % (kBlocks - count)), count);
          read.out = {targets.data() + (thread * kReads + i) * 16 * kBlock, read.out.size()};
          const auto priority = i % 2 == 0 ? kNeeded : kGuess;
          const ReadQueue::Id id =
              queue->Submit(read, priority, [&done](const absl::Status& status) {
                EXPECT_EQ(status, absl::OkStatus());
                done.Add();
              });
          if (i % 3 == 0) queue->Promote(id);
          if (i % 5 == 0 && queue->Cancel(id)) {
            ++taken_back;
          } else {
            reads.push_back(read);
          }
        }
        ASSERT_TRUE(done.Reaches(kReads - taken_back));
        for (const FileRead& read : reads) EXPECT_TRUE(Holds(read));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_P(ReadQueueTest, NeededReadsOvertakeGuesses) {
  MakeFile(16 * kBlock);
  Gate gate;
  EventCounter done;
  Mutex mu;
  std::vector<std::string> order;
  const auto queue = Make(OptionsOf(1, 1));
  // With one piece at a time, nothing begins while the only thread is with this callback.
  queue->Submit(Blocks(0, 1), kNeeded, [&](const absl::Status&) {
    done.Add();
    gate.Pass();
  });
  ASSERT_TRUE(done.Reaches(1));
  const auto submit = [&](int64_t block, ReadPriority priority, const std::string& name) {
    return queue->Submit(Blocks(block, 2), priority, [&, name](const absl::Status& status) {
      EXPECT_EQ(status, absl::OkStatus());
      MutexLock lock(&mu);
      order.push_back(name);
      done.Add();
    });
  };
  submit(1, kGuess, "guess");
  const ReadQueue::Id promoted = submit(3, kGuess, "promoted");
  const ReadQueue::Id cancelled = submit(5, kGuess, "cancelled");
  submit(7, kNeeded, "needed");
  queue->Promote(promoted);
  EXPECT_FALSE(queue->Cancel(promoted));
  EXPECT_TRUE(queue->Cancel(cancelled));
  EXPECT_FALSE(queue->Cancel(cancelled));
  gate.Open();
  ASSERT_TRUE(done.Reaches(4));
  MutexLock lock(&mu);
  EXPECT_THAT(order, ElementsAre("needed", "promoted", "guess"));
}

TEST_P(ReadQueueTest, CallbacksMaySubmit) {
  MakeFile(240 * kBlock);
  EventCounter done;
  std::atomic<int64_t> next = 0;
  std::unique_ptr<ReadQueue> queue;
  const ReadQueue::Done read_on = [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    const int64_t i = next++;
    if (i < 60) queue->Submit(Blocks(4 * i, 4), i % 2 == 0 ? kGuess : kNeeded, read_on);
    done.Add();
  };
  queue = Make(OptionsOf(2, 2));
  for (int i = 0; i < 3; ++i) read_on(absl::OkStatus());
  ASSERT_TRUE(done.Reaches(3 + 60));
  EXPECT_TRUE(Holds(Blocks(0, 240)));
}

TEST_P(ReadQueueTest, DestructionEndsEveryReadOnce) {
  constexpr int kReads = 100;
  MakeFile(256 * kBlock);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::atomic<int>> ends(kReads);
    std::vector<std::atomic<bool>> whole(kReads);
    std::vector<Buffer> targets;
    {
      const auto queue = Make(OptionsOf(2, 4));
      for (size_t i = 0; i < kReads; ++i) {
        targets.push_back(*Buffer::Allocate(16 * kBlock));
        FileRead read = Blocks(static_cast<int64_t>(i * 2), 16);
        read.out = {targets[i].data(), read.out.size()};
        queue->Submit(read, i % 2 == 0 ? kNeeded : kGuess, [&, i](const absl::Status& status) {
          ++ends[i];
          whole[i] = status.ok();
          EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kCancelled) << status;
        });
      }
    }
    for (size_t i = 0; i < kReads; ++i) {
      EXPECT_EQ(ends[i], 1);
      FileRead read = Blocks(static_cast<int64_t>(i * 2), 16);
      read.out = {targets[i].data(), read.out.size()};
      EXPECT_TRUE(!whole[i] || Holds(read));
    }
  }
}

TEST_P(ReadQueueTest, AnIdleQueueCanBeDestroyed) {
  for (int i = 0; i < 50; ++i) Make(OptionsOf(1, 1 + i % 8));
}

TEST_P(ReadQueueTest, ATruncatedFileIsDataLoss) {
  MakeFile(64 * kBlock);
  EventCounter done;
  absl::Status before;
  absl::Status across;
  absl::Status behind;
  const auto queue = Make(OptionsOf(4, 4));
  std::filesystem::resize_file(path_, 30 * kBlock + 10);
  const auto submit = [&](int64_t begin, absl::Status* end) {
    queue->Submit(Blocks(begin, 16), kNeeded, [&done, end](const absl::Status& status) {
      *end = status;
      done.Add();
    });
  };
  submit(0, &before);
  submit(16, &across);
  submit(40, &behind);
  ASSERT_TRUE(done.Reaches(3));
  EXPECT_EQ(before, absl::OkStatus());
  EXPECT_TRUE(Holds(Blocks(0, 16)));
  for (const absl::Status& end : {across, behind}) {
    EXPECT_EQ(end.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(end.message()),
                HasSubstr(absl::StrCat(path_, ": the file is shorter than it was")));
  }
}

TEST_P(ReadQueueTest, ReadsFilesThatLieInMemory) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  MakeFile(100 * kBlock + 123);
  std::string path = "/dev/shm/caravan-XXXXXX";
  const int fd = ::mkstemp(path.data());
  ASSERT_GE(fd, 0);
  ::close(fd);
  std::filesystem::copy_file(path_, path, std::filesystem::copy_options::overwrite_existing);
  file_ = *DirectFile::Open(path);
  std::filesystem::remove(path);
  EXPECT_FALSE(file_->direct());
  EventCounter done;
  const auto queue = Make(OptionsOf(8, 4));
  queue->Submit(Blocks(0, 101), kGuess, [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Add();
  });
  ASSERT_TRUE(done.Reaches(1));
  EXPECT_TRUE(Holds(Blocks(0, 101)));
}

INSTANTIATE_TEST_SUITE_P(Engines, ReadQueueTest, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool>& uring) {
                           return uring.param ? "Uring" : "Threads";
                         });

/// From now on the kernel refuses io_uring to this thread, as it does in many containers. False:
/// it cannot be asked for that.
bool RefuseRings() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter = {std::size(program), program};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST(ReadQueueCreateTest, WithoutARingItReadsByThreads) {
  bool refused = false;
  std::string name;
  std::thread([&] {
    refused = RefuseRings();
    if (refused) name = std::string((*ReadQueue::Create({}))->Name());
  }).join();
  if (!refused) GTEST_SKIP() << "no seccomp here";
  EXPECT_EQ(name, "threads");
}

int64_t PinnedMemory() { return ProcessMemory(::getpid(), "VmPin"); }

// Whoever takes as much memory again must not have it twice for a while.
TEST(ReadQueueCreateTest, ItsEndLetsGoOfItsMemoryAtOnce) {
  absl::StatusOr<Buffer> memory = Buffer::Allocate(int64_t{8} << 20);
  ASSERT_TRUE(memory.ok());
  ReadQueue::Options options;
  options.memory = absl::MakeSpan(memory->data(), static_cast<size_t>(memory->size()));
  const int64_t before = PinnedMemory();
  auto queue = ReadQueue::Create(options);
  ASSERT_TRUE(queue.ok());
  if (PinnedMemory() < before + memory->size()) GTEST_SKIP() << "nothing was pinned here";
  queue->reset();
  EXPECT_EQ(PinnedMemory(), before);
}

TEST(ReadQueueCreateTest, MemoryThatMayNotBePinnedIsReadToAllTheSame) {
  TempDir dir;
  EventCounter done;
  const std::string contents = Contents(64 * kBlock);
  const auto file = *DirectFile::Open(dir.Write("file", contents));
  Buffer memory = *Buffer::Allocate(64 * kBlock);
  struct rlimit usual;
  ASSERT_EQ(::getrlimit(RLIMIT_MEMLOCK, &usual), 0);
  struct rlimit none = usual;
  none.rlim_cur = 0;  // root is free of it
  ASSERT_EQ(::setrlimit(RLIMIT_MEMLOCK, &none), 0);
  ReadQueue::Options options;
  options.memory = {memory.data(), static_cast<size_t>(memory.size())};
  const auto queue = ReadQueue::Create(options);
  ASSERT_EQ(::setrlimit(RLIMIT_MEMLOCK, &usual), 0);
  ASSERT_TRUE(queue.ok()) << queue.status();
  (*queue)->Submit({file.get(), 0, options.memory}, kNeeded, [&](const absl::Status& status) {
    EXPECT_EQ(status, absl::OkStatus());
    done.Add();
  });
  ASSERT_TRUE(done.Reaches(1));
  EXPECT_EQ(std::memcmp(memory.data(), contents.data(), contents.size()), 0);
}

}  // namespace
}  // namespace caravan
