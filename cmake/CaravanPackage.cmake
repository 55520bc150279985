# The Debian package, by `cpack` in a build directory that has the target caravan (scripts/package.sh): the
# binary, its manual, the units, and their configuration in /etc/caravan. deploy/debian is what dpkg runs.

install(TARGETS caravan DESTINATION bin)
set(deploy ${CMAKE_SOURCE_DIR}/deploy)
install(FILES ${deploy}/systemd/caravan-coordinator.service ${deploy}/systemd/caravan-worker.service
  DESTINATION lib/systemd/system)
install(FILES ${deploy}/systemd/caravan-worker.service
  DESTINATION lib/systemd/system RENAME caravan-worker@.service)
install(FILES ${deploy}/config/caravan-coordinator.toml ${deploy}/config/caravan-worker.toml
  DESTINATION /etc/caravan)
install(FILES docs/operations.md docs/operations.zh-CN.md DESTINATION share/doc/caravan)

# The manual is what the binary says of itself; not part of all, as it takes help2man. Who installs
# without it has none.
add_custom_target(caravan_manual
  COMMAND ${CMAKE_SOURCE_DIR}/scripts/man_pages.sh $<TARGET_FILE:caravan> ${CMAKE_BINARY_DIR}/man
  DEPENDS caravan ${CMAKE_SOURCE_DIR}/scripts/man_pages.sh
  VERBATIM)
# A bare cpack takes the pages as they were last made, however old: build caravan_manual before.
install(DIRECTORY ${CMAKE_BINARY_DIR}/man/ DESTINATION share/man/man1 OPTIONAL)

# Whoever packages has built what is packaged: not the tests, too.
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_VENDOR Caravan)
# Below DESTDIR, since not all of it is below /usr.
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
  OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_MAINTAINER "Caravan's maintainers <maintainers@caravan.invalid>")
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "language models of the DeepSeek family over several small machines")
set(CPACK_PACKAGE_DESCRIPTION
"A coordinator gives every worker a range of a model's layers, and each token's
activations travel from worker to worker. The coordinator serves OpenAI's API.

After installation nothing runs: the units caravan-coordinator and
caravan-worker are configured in /etc/caravan and then enabled.")
# Libraries are found by dpkg-shlibdeps; the user is made with adduser.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS adduser)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA
  ${deploy}/debian/conffiles ${deploy}/debian/postinst ${deploy}/debian/prerm ${deploy}/debian/postrm)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
