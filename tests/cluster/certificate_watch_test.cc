#include "cluster/certificate_watch.h"

#include <filesystem>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "cluster/certificate.h"
#include "cluster/certificate_files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);
constexpr absl::Duration kDay = absl::Hours(24);

class CertificateWatchTest : public ::testing::Test {
 protected:
  CertificateWatchTest() { Renew(kStart, 100 * kDay); }

  void Renew(absl::Time now, absl::Duration lifetime) {
    const KeyAndCertificate box =
        *IssueIdentity(authority_, {Role::kWorker, "box-a"}, {now, lifetime});
    ASSERT_TRUE(ReplacePrivateFile(AuthorityPath(dir_.path()), authority_.certificate_pem).ok());
    ASSERT_TRUE(
        ReplacePrivateFile(IdentityPath(dir_.path()), box.key_pem + box.certificate_pem).ok());
  }

  /// What is logged by a look at that time.
  std::string Look(absl::Time now) {
    testing::internal::CaptureStderr();
    watch_.Look(now);
    return testing::internal::GetCapturedStderr();
  }

  const TempDir dir_;
  const KeyAndCertificate authority_ = *MakeAuthority({kStart, 3650 * kDay});
  CertificateWatch watch_{dir_.path()};
};

TEST_F(CertificateWatchTest, SaysOnceEachThatTwoWeeksAndADayAreLeftAndThatItHasEnded) {
  EXPECT_EQ(watch_.not_after(), absl::InfiniteFuture());
  EXPECT_THAT(Look(kStart), IsEmpty());
  const absl::Time end = watch_.not_after();
  EXPECT_EQ(end, kStart + 100 * kDay);
  EXPECT_THAT(Look(end - 14 * kDay - absl::Seconds(1)), IsEmpty());
  EXPECT_THAT(Look(end - 14 * kDay),
              AllOf(HasSubstr("certificate_expires"), HasSubstr(IdentityPath(dir_.path())),
                    HasSubstr("hours=336")));
  EXPECT_THAT(Look(end - 2 * kDay), IsEmpty());
  EXPECT_THAT(Look(end - kDay), HasSubstr("certificate_expires"));
  EXPECT_THAT(Look(end - absl::Hours(1)), IsEmpty());
  EXPECT_THAT(Look(end + absl::Seconds(1)),
              AllOf(HasSubstr("certificate_expires"), HasSubstr("hours=0")));
  EXPECT_THAT(Look(end + absl::Seconds(11)), IsEmpty());
  EXPECT_EQ(watch_.not_after(), end);
}

TEST_F(CertificateWatchTest, AProcessThatStartsLateIsToldOnce) {
  EXPECT_THAT(Look(kStart + 99 * kDay + absl::Hours(12)), HasSubstr("certificate_expires"));
  EXPECT_THAT(Look(kStart + 99 * kDay + absl::Hours(13)), IsEmpty());
}

TEST_F(CertificateWatchTest, ARenewedOneBeginsAnew) {
  Look(kStart);
  Look(kStart + 99 * kDay);
  Renew(kStart + 99 * kDay, 50 * kDay);
  EXPECT_THAT(Look(kStart + 99 * kDay),
              AllOf(HasSubstr("certificate_renewed"), Not(HasSubstr("certificate_expires"))));
  EXPECT_EQ(watch_.not_after(), kStart + 149 * kDay);
  EXPECT_THAT(Look(kStart + 136 * kDay), HasSubstr("certificate_expires"));
}

TEST_F(CertificateWatchTest, BrokenFilesAreAWarningOnceUntilTheyAreGood) {
  Look(kStart);
  for (int i = 0; i < 2; ++i) {
    std::filesystem::resize_file(IdentityPath(dir_.path()), 10);
    EXPECT_THAT(Look(kStart), IsEmpty()) << "it may be being replaced";
    EXPECT_THAT(Look(kStart),
                AllOf(HasSubstr("certificate_unusable"), HasSubstr(IdentityPath(dir_.path()))));
    EXPECT_THAT(Look(kStart), IsEmpty());
    EXPECT_EQ(watch_.not_after(), kStart + 100 * kDay) << "the process still shows that";
    Renew(kStart, 100 * kDay);
    EXPECT_THAT(Look(kStart), HasSubstr("certificate_renewed"));
  }
}

TEST_F(CertificateWatchTest, AnAuthorityThatDoesNotBelongToItIsToldToo) {
  Look(kStart);
  const KeyAndCertificate other = *MakeAuthority({kStart, 3650 * kDay});
  ASSERT_TRUE(ReplacePrivateFile(AuthorityPath(dir_.path()), other.certificate_pem).ok());
  Look(kStart);
  EXPECT_THAT(Look(kStart), HasSubstr("certificate_unusable"));
}

TEST_F(CertificateWatchTest, TheEndOfItsAuthorityIsForetoldToo) {
  const KeyAndCertificate brief = *MakeAuthority({kStart, 50 * kDay});
  const KeyAndCertificate box =
      *IssueIdentity(brief, {Role::kWorker, "box-a"}, {kStart, 100 * kDay});
  // One of two authorities: which of them it is of counts.
  ASSERT_TRUE(ReplacePrivateFile(AuthorityPath(dir_.path()),
                                 authority_.certificate_pem + brief.certificate_pem)
                  .ok());
  ASSERT_TRUE(
      ReplacePrivateFile(IdentityPath(dir_.path()), box.key_pem + box.certificate_pem).ok());
  EXPECT_THAT(Look(kStart), IsEmpty());
  EXPECT_EQ(watch_.not_after(), kStart + 50 * kDay);
  EXPECT_THAT(Look(kStart + 36 * kDay), HasSubstr("certificate_expires"));
  EXPECT_THAT(Look(kStart + 51 * kDay), HasSubstr("certificate_expires"));
  EXPECT_THAT(Look(kStart + 51 * kDay), IsEmpty());
  EXPECT_THAT(Look(kStart + 51 * kDay), IsEmpty()) << "it is said that it has ended";
}

TEST_F(CertificateWatchTest, ABrokenRenewalThatComesLateIsTold) {
  Look(kStart);
  const absl::Time late = kStart + 101 * kDay;
  EXPECT_THAT(Look(late), HasSubstr("certificate_expires"));
  for (int i = 0; i < 3; ++i) EXPECT_THAT(Look(late), IsEmpty());
  Renew(late, 100 * kDay);
  std::filesystem::resize_file(IdentityPath(dir_.path()), 10);
  EXPECT_THAT(Look(late), IsEmpty()) << "it may be being replaced";
  EXPECT_THAT(Look(late), HasSubstr("certificate_unusable"));
  EXPECT_THAT(Look(late), IsEmpty());
  Renew(late, 100 * kDay);
  EXPECT_THAT(Look(late), HasSubstr("certificate_renewed"));
}

/// Until `done`, or for a minute.
template <class Done>
bool Within(const Done& done) {
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  while (!done() && absl::Now() < deadline) std::this_thread::yield();
  return done();
}

TEST_F(CertificateWatchTest, TheThreadLooksAtOnceAndEndsWithItsOwner) {
  Renew(absl::Now(), 100 * kDay);
  const CertificateWatcher watcher(dir_.path(), absl::InfiniteDuration());
  EXPECT_TRUE(Within([&] { return watcher.not_after() != absl::InfiniteFuture(); }));
  EXPECT_GT(watcher.not_after(), absl::Now() + 99 * kDay);
  EXPECT_LT(watcher.not_after(), absl::Now() + 101 * kDay);
}

TEST_F(CertificateWatchTest, TheThreadLooksAgainAndAgain) {
  Renew(absl::Now(), 100 * kDay);
  const CertificateWatcher watcher(dir_.path(), absl::Milliseconds(1));
  for (const int days : {200, 300}) {
    Renew(absl::Now(), days * kDay);
    EXPECT_TRUE(Within([&] { return watcher.not_after() > absl::Now() + (days - 1) * kDay; }))
        << days;
  }
}

}  // namespace
}  // namespace caravan
