/* built from web/src fa7d4dc38ceff9a3d525ba3e4b43f6d2348a721c01eb96a6c62e4691eaf9900e */
