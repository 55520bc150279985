#include "base/subprocess.h"

#include <cerrno>
#include <csignal>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

Subprocess MustStart(const std::string& script, const Subprocess::Options& files = {}) {
  Subprocess::Options options = files;
  options.command = {"/bin/sh", "-c", script};
  absl::StatusOr<Subprocess> process = Subprocess::Start(options);
  CARAVAN_CHECK(process.ok());
  return *std::move(process);
}

TEST(SubprocessTest, TellsTheExitCodeAgainAndAgain) {
  Subprocess process = MustStart("exit 3");
  EXPECT_EQ(process.Wait(), 3);
  EXPECT_EQ(process.Wait(), 3);
  EXPECT_EQ(process.Wait(absl::ZeroDuration()), 3);
  process.Signal(SIGKILL);  // Nobody's any more.
}

TEST(SubprocessTest, TellsTheSignalThatEndedIt) {
  Subprocess process = MustStart("kill -9 $$");
  EXPECT_EQ(process.Wait(), 128 + SIGKILL);
}

TEST(SubprocessTest, GivesUpWaitingWhenTimeRunsOut) {
  Subprocess process = MustStart("exec tail -f /dev/null");
  EXPECT_EQ(process.Wait(absl::Milliseconds(1)), std::nullopt);
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 128 + SIGTERM);
}

TEST(SubprocessTest, TheDestructorEndsTheChild) {
  pid_t pid = -1;
  {
    const Subprocess process = MustStart("exec tail -f /dev/null");
    pid = process.pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_EQ(::kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
}

TEST(SubprocessTest, ReadsAndWritesFiles) {
  const TempDir dir;
  Subprocess::Options files;
  files.stdin_path = dir.Write("in", "hello\n");
  files.stdout_path = dir.Write("out", "what was there before");
  files.stderr_path = dir.File("err");
  EXPECT_EQ(MustStart("cat; echo oops >&2", files).Wait(), 0);
  EXPECT_EQ(*ReadFile(files.stdout_path, 100), "hello\n");
  EXPECT_EQ(*ReadFile(files.stderr_path, 100), "oops\n");
  files.stderr_path = files.stdout_path;
  EXPECT_EQ(MustStart("echo oops >&2; cat", files).Wait(), 0);
  EXPECT_EQ(*ReadFile(files.stdout_path, 100), "oops\nhello\n");
}

TEST(SubprocessTest, AChildHeedsSignalsThatThisProcessBlocks) {
  sigset_t set;
  sigset_t before;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, &before);
  Subprocess process = MustStart("kill -TERM $$; exit 3");
  EXPECT_EQ(process.Wait(), 128 + SIGTERM);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST(SubprocessTest, AProgramThatIsNotThereIsNamed) {
  Subprocess::Options options;
  options.command = {"/nowhere/program"};
  const absl::Status status = Subprocess::Start(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("/nowhere/program"));
}

}  // namespace
}  // namespace caravan
