#include "cluster/certificate_files.h"

#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "absl/time/clock.h"
#include "base/file.h"
#include "cluster/certificate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

mode_t ModeOf(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(::stat(path.c_str(), &info), 0) << path;
  return info.st_mode & 0777;
}

class CertificateFilesTest : public ::testing::Test {
 protected:
  const TempDir dir_;
};

TEST_F(CertificateFilesTest, AreForTheirOwnerAlone) {
  const mode_t before = ::umask(0);
  const std::string directory = dir_.File("a/b");
  EXPECT_TRUE(MakePrivateDirectory(directory).ok());
  EXPECT_TRUE(WritePrivateFile(directory + "/new", "1").ok());
  EXPECT_TRUE(ReplacePrivateFile(directory + "/over", "2").ok());
  ::umask(before);
  EXPECT_EQ(ModeOf(directory), 0700u);
  EXPECT_EQ(ModeOf(directory + "/new"), 0600u);
  EXPECT_EQ(ModeOf(directory + "/over"), 0600u);
}

TEST_F(CertificateFilesTest, AreNotOverwrittenUnlessThatIsMeant) {
  const std::string path = dir_.File("key");
  ASSERT_TRUE(WritePrivateFile(path, "first").ok());
  const absl::Status again = WritePrivateFile(path, "second");
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(again.message(), HasSubstr(path));
  EXPECT_EQ(*ReadPrivateFile(path), "first");
  ASSERT_TRUE(ReplacePrivateFile(path, "third").ok());
  EXPECT_EQ(*ReadPrivateFile(path), "third");
}

TEST_F(CertificateFilesTest, AreNotReadWhereOthersMayReadThem) {
  const std::string path = dir_.File("key");
  ASSERT_TRUE(WritePrivateFile(path, "secret").ok());
  for (const mode_t mode : {0604, 0644, 0602, 0601}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    const absl::StatusOr<std::string> text = ReadPrivateFile(path);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kPermissionDenied) << std::oct << mode;
    EXPECT_THAT(text.status().message(), HasSubstr("chmod 600"));
  }
  ASSERT_EQ(::chmod(path.c_str(), 0400), 0);
  EXPECT_TRUE(ReadPrivateFile(path).ok());
}

TEST_F(CertificateFilesTest, DirectoriesAreMadeForTheirOwnerAloneHoweverTheyAreWritten) {
  const mode_t before = ::umask(022);
  for (const char* name : {"plain", "with/", "in/another", "by/./way/../way/"}) {
    ASSERT_TRUE(MakePrivateDirectory(dir_.File(name)).ok()) << name;
    EXPECT_EQ(ModeOf(dir_.File(name)), 0700u) << name;
  }
  EXPECT_EQ(ModeOf(dir_.File("in")), 0755u);
  EXPECT_TRUE(MakePrivateDirectory(dir_.File("in")).ok());
  EXPECT_EQ(ModeOf(dir_.File("in")), 0755u) << "one that is there stays as it is";
  const std::filesystem::path here = std::filesystem::current_path();
  std::filesystem::current_path(dir_.path());
  EXPECT_TRUE(MakePrivateDirectory("relative").ok());
  std::filesystem::current_path(here);
  EXPECT_EQ(ModeOf(dir_.File("relative")), 0700u);
  ::umask(before);
  dir_.Write("file", "");
  const absl::Status status = MakePrivateDirectory(dir_.File("file/below"));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("file/below"));
}

TEST_F(CertificateFilesTest, OfSeveralAuthoritiesTheOneWhoseKeyIsThereSigns) {
  const Validity year = {absl::Now(), absl::Hours(24 * 365)};
  const KeyAndCertificate old = *MakeAuthority(year);
  const KeyAndCertificate next = *MakeAuthority(year);
  ASSERT_TRUE(
      WritePrivateFile(AuthorityPath(dir_.path()), next.certificate_pem + old.certificate_pem)
          .ok());
  EXPECT_EQ(ReadAuthority(dir_.path()).status().code(), absl::StatusCode::kNotFound);
  for (const KeyAndCertificate& each : {old, next}) {
    ASSERT_TRUE(ReplacePrivateFile(AuthorityKeyPath(dir_.path()), each.key_pem).ok());
    const absl::StatusOr<KeyAndCertificate> authority = ReadAuthority(dir_.path());
    ASSERT_TRUE(authority.ok()) << authority.status();
    EXPECT_EQ(authority->certificate_pem, each.certificate_pem);
  }
  ASSERT_TRUE(ReplacePrivateFile(AuthorityKeyPath(dir_.path()), *MakeKey()).ok());
  const absl::Status status = ReadAuthority(dir_.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("ca.pem"));
}

TEST_F(CertificateFilesTest, AMissingOneIsNamed) {
  const absl::Status status = ReadIdentity(dir_.path(), absl::Now()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("ca.pem"));
}

}  // namespace
}  // namespace caravan
